"""The error of the embedded server, and how the operating system's become it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import MultitenantError

ELSEWHERE = "; give another folder, for example in $MULTITENANT_DATA_DIR"


class DevServerError(MultitenantError, RuntimeError):
    """The embedded server cannot be started or used.

    Attributes:
        data_dir: the data folder.
        reason: what is wrong and what to do.
        log_tail: the end of what PostgreSQL said, or "".
    """

    def __init__(self, data_dir: str, reason: str, log_tail: str = "") -> None:
        super().__init__(data_dir, reason, log_tail)
        self.data_dir, self.reason, self.log_tail = data_dir, reason, log_tail

    def __str__(self) -> str:
        said = f"\nPostgreSQL said:\n{self.log_tail}" if self.log_tail else ""
        return f"embedded PostgreSQL in {self.data_dir}: {self.reason}{said}"


@contextmanager
def os_errors_translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise DevServerError(str(path), f"{exc}{ELSEWHERE}") from exc
