"""Runs `multitenant`, in this process or as the real command."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy_multitenant.cli import app

COMMAND = Path(sys.executable).parent / "multitenant"


def unmeasured(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment into which coverage does not follow. It costs time; and where it traces greenlets, it
    clears whatever error comes up while it looks for one, a KeyboardInterrupt as well."""
    return {name: value for name, value in environment.items() if not name.startswith("COVERAGE")}


@dataclass(frozen=True)
class Result:
    """What a command left behind. Both streams have been looked at for a traceback."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


def spawn(arguments: tuple[str, ...], cwd: Path, environment: Mapping[str, str], answer: str = "") -> Result:
    """Run the real command."""
    done = subprocess.run(
        [COMMAND, *arguments],
        cwd=cwd,
        env=environment,
        input=answer,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


def call(arguments: tuple[str, ...], cwd: Path, environment: Mapping[str, str], answer: str = "") -> Result:
    """The same in this process, which spares a second of imports."""
    out, err = io.StringIO(), io.StringIO()
    with _as_if_alone(cwd, environment), mock.patch("sys.stdin", io.StringIO(answer)):
        with mock.patch.multiple(sys, stdout=out, __stdout__=out, stderr=err, __stderr__=err):
            code = app.run(arguments)
    assert "Traceback" not in out.getvalue() + err.getvalue(), err.getvalue()
    return Result(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _as_if_alone(cwd: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """In a folder of its own, and with nothing imported that a configuration may bring along."""
    path, modules = list(sys.path), set(sys.modules)
    importlib.invalidate_caches()
    with contextlib.chdir(cwd), mock.patch.dict(os.environ, environment, clear=True):
        try:
            yield
        finally:
            sys.path[:] = path
            for name in set(sys.modules) - modules:
                file = getattr(sys.modules[name], "__file__", None) or ""
                if Path(file).is_relative_to(cwd.parent):
                    del sys.modules[name]
