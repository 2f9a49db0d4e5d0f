"""Runs the examples of one Markdown page, in order, in the working folder: `python run_page.py README.md`.

A Python block that begins with a comment such as `# models.py` is written to that file; others are
executed in one namespace, and what they print must be what the comments behind each `print(...)` say. Of a
console block, the lines `$ multitenant ...` are executed, and must exit with 0: those of README.md as a real
command, those of other pages in this process, which spares a second each. So are the lines `$ pytest`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # this file is run by its path

from tests.command import call, spawn

BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# (?P<name>[\w./]+\.py)\n")
PRINTED = re.compile(r"^ *print\(.*\)  # (?P<text>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One example, and the line of the page that it begins in."""

    language: str
    code: str
    line: int


def parse_blocks(page: str) -> Iterator[Block]:
    for match in BLOCK.finditer(page):
        yield Block(match["language"], match["code"], page.count("\n", 0, match.start("code")) + 1)


def run_python(block: Block, page: Path, namespace: dict[str, object]) -> None:
    expected = PRINTED.findall(block.code)
    assert len(expected) == len(re.findall(r"\bprint\(", block.code)), "each print() says what it prints"
    # Blank lines in front: a traceback then names the page's own lines.
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, namespace)  # noqa: S102
    assert out.getvalue().splitlines() == expected, f"{out.getvalue()!r} was printed, not {expected}"


def run_console(block: Block, *, spawned: bool) -> None:
    for line in block.code.splitlines():
        command = shlex.split(line.removeprefix("$ "))
        assert line.startswith("$ "), f"no prompt: {line}"
        if command[0] == "pytest":
            run_pytest(command[1:])
        if command[0] != "multitenant":
            continue
        run = spawn if spawned else call
        done = run(tuple(command[1:]), Path.cwd(), os.environ.copy())
        assert done.code == 0, f"exit code {done.code}: {done.out}{done.err}"


def run_pytest(arguments: list[str]) -> None:
    # Of the plugins that are installed here ours alone, which spares seconds.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": "."}
    command = [sys.executable, "-m", "pytest", "-p", "sqlalchemy_multitenant.pytest_plugin", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run_page(page: Path) -> None:
    sys.path.insert(0, "")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in parse_blocks(page.read_text(encoding="utf-8")):
        try:
            if block.language == "console":
                run_console(block, spawned=page.name == "README.md")
            elif name := FILE_NAME.match(block.code):
                path = Path(name["name"])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.code, encoding="utf-8")
            else:
                run_python(block, page, namespace)
        except BaseException as error:
            error.add_note(f"in the example at {page.name}:{block.line}")
            raise


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
