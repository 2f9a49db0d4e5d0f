"""mypy --strict and pyright infer the types that tests/typing/ asserts, and refuse the wrong uses there.

A wrong use carries `type: ignore`; both checkers complain about one that is not needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "typing"
BIN = Path(sys.executable).parent


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "MYPYPATH": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_mypy_infers_the_types_of_the_api() -> None:
    # A cache of its own, since `make lint` may be at work in the other.
    cache = ROOT / ".mypy_cache" / "typing-tests"
    done = run(BIN / "mypy", "--strict", "--cache-dir", cache, *sorted(SAMPLES.glob("*.py")))
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_infers_the_types_of_the_api() -> None:
    done = run(BIN / "pyright", "--project", SAMPLES, "--pythonpath", sys.executable, "--stats")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Found {len(list(SAMPLES.glob('*.py')))} source files" in done.stdout
