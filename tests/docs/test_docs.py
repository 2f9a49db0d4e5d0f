"""The examples in README.md and docs/ work as they are written."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from sqlalchemy_multitenant import Connection, Hooks, Isolation, Metrics, Migrations, Schemas

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?P<target>[\w./-]+\.md)(?:#[^)]*)?\)")

OPTION = re.compile(r"^\| `(\w+)` \| (.*?) \|", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples(page: Path, empty_url: URL, tmp_path: Path) -> None:
    if "asyncpg" in page.read_text(encoding="utf-8"):
        pytest.importorskip("asyncpg")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(Path(__file__).with_name("run_page.py")), str(page)],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": empty_url.render_as_string(hide_password=False)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr  # an exception in a thread or at exit


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        assert (page.parent / match["target"]).is_file(), match["target"]


@pytest.mark.parametrize("kind", [Connection, Isolation, Schemas, Migrations, Metrics, Hooks])
def test_every_option_is_documented(kind: type[Any]) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = page.partition(f"## `{kind.__name__}`\n")[2].partition("\n## ")[0]
    documented = dict(OPTION.findall(section))
    assert list(documented) == [field.name for field in dataclasses.fields(kind)]
    if kind is Hooks:
        return
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = "required" if default is dataclasses.MISSING else f"`{default!r}`".replace("'", '"')
        assert documented[field.name] == shown
