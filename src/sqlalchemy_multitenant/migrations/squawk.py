"""squawk, the linter for dangerous SQL (https://squawkhq.com), over compiled statements."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import MigrationError
from .plan import Statement

# What the toolkit sees to itself: timeouts are set for every statement, and a revision is in one transaction.
_SEEN_TO = (
    "ban-uncommitted-transaction",
    "require-lock-timeout",
    "require-statement-timeout",
    "require-timeout-settings",
    "transaction-nesting",
)


# A matter of taste, and of what SQLAlchemy makes of a column: no harm to what runs.
_TASTE = "prefer-"


def find_squawk() -> Path | None:
    """The program, beside this Python or on $PATH; None where the extra `lint` is not installed."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("squawk", path=f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    return None if found is None else Path(found)


def run_squawk(
    statements: Sequence[Statement], *, in_transaction: bool
) -> Iterator[tuple[int, str, str, str]]:
    """(line of the revision, rule, message, help) of each thing that it says.

    Raises:
        MigrationError: it fails.
    """
    program = find_squawk()
    if program is None or not statements:
        return
    text, starts = "", []
    for statement in statements:
        starts.append(text.count("\n"))
        text += f"{statement.sql}\n;\n"  # the last line may be a comment
    with tempfile.TemporaryDirectory() as folder:
        # In a folder of its own, so that no configuration of somebody else's counts.
        file = Path(folder) / "revision.sql"
        file.write_text(text, encoding="utf-8")
        options = ["--reporter", "json", f"--exclude={','.join(_SEEN_TO)}"]
        if in_transaction:
            options.append("--assume-in-transaction")
        done = subprocess.run(
            [program, *options, str(file)], capture_output=True, text=True, cwd=folder, check=False
        )
    try:
        found = json.loads(done.stdout or "[]")
    except json.JSONDecodeError as error:
        raise MigrationError(f"squawk failed: {done.stderr.strip() or done.stdout.strip()}") from error
    for violation in found:
        if violation["rule_name"].startswith(_TASTE):
            continue
        position = sum(start <= violation["line"] for start in starts) - 1
        yield (
            statements[max(position, 0)].line,
            violation["rule_name"],
            violation["message"],
            violation.get("help") or "",
        )
