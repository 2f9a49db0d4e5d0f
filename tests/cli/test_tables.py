"""Tables, short ones and long ones."""

from __future__ import annotations

import pytest

from sqlalchemy_multitenant.cli.common import LONG_TABLE, print_table


def test_a_long_table_says_what_a_short_one_does(capsys: pytest.CaptureFixture[str]) -> None:
    row = ("acme", "[green]ok[/]", r"a \[bracket]", "日本")
    print_table(("Tenant", "State", "Said", "Name"), [row])
    short = capsys.readouterr().out
    print_table(("Tenant", "State", "Said", "Name"), [*[row] * LONG_TABLE, ("b", "x", "y", "z")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == LONG_TABLE + 2
    assert lines[1] == "acme    ok     a [bracket]  日本"
    assert lines[-1] == "b       x      y            z"
    for cell in ("acme", "ok", "a [bracket]", "日本"):
        assert cell in short
