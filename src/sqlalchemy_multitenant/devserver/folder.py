"""A data folder: its locks, its files, and the server that it may have."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from .binaries import VERSION, Done, copy_binaries, find_owner, run
from .errors import ELSEWHERE, DevServerError, os_errors_translated

if sys.platform != "win32":
    import fcntl

_SOCKET_NAME = ".s.PGSQL.5432"
# sockaddr_un.sun_path, less the final NUL: 107 bytes on Linux, 103 on macOS.
_SOCKET_PATH_MAX_BYTES = 103
_START_TIMEOUT_S, _FAST_STOP_TIMEOUT_S, _IMMEDIATE_STOP_TIMEOUT_S = 60.0, 30.0, 10.0
_DEFAULTS = {"max_connections": "200"}


class Postmaster(NamedTuple):
    """What postmaster.pid says."""

    pid: int
    port: int
    socket_dir: Path
    is_ready: bool

    def answering_pid(self) -> int | None:
        """The pid of who answers on the socket, seen from here: 0 in another container. None: nobody."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            try:
                client.connect(os.fsencode(self.socket_dir / _SOCKET_NAME))
                if sys.platform == "linux":
                    cred = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                    return int(struct.unpack("3i", cred)[0])
            except OSError:
                return None
        return self.pid


class Folder:
    """A data folder and its open locks. The descriptors outlive a folder that is removed and made anew."""

    def __init__(self, path: Path, bin_dir: Path, owner: tuple[int, int] | None) -> None:
        self.path, self.bin_dir, self.owner = path, bin_dir, owner
        self.data = path / "data"
        self._server_bin_dir = bin_dir
        self._fds: list[int] = []
        try:
            self._start_fd, self._users_fd, self._server_fd = map(self._open, ("start", "users", "server"))
        except OSError:
            self.close()
            raise

    @classmethod
    def open(cls, bin_dir: Path, data_dir: Path, *, create: bool) -> Folder:
        path = data_dir.expanduser().resolve()
        if sys.platform == "win32":
            raise DevServerError(str(path), "it needs unix sockets: use WSL, or set $DATABASE_URL")
        with os_errors_translated(path):
            if create:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(path, bin_dir, find_owner(path))

    def error(self, reason: str, log_tail: str = "") -> DevServerError:
        return DevServerError(str(self.path), reason, log_tail)

    def _open(self, name: str) -> int:
        # O_NOFOLLOW: as root in somebody's folder, a link there must not choose what is made and given.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.path / f"{name}.lock", flags, 0o600)
        self._fds.append(fd)
        if self.owner:
            os.fchown(fd, *self.owner)
        return fd

    def close(self) -> None:
        for fd in self._fds:
            # Closing alone would not unlock what a forked child has inherited.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)
        self._fds.clear()

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Nobody else starts, stops, joins or leaves in the meantime."""
        if not _wait_for(lambda: _try_lock(self._start_fd, fcntl.LOCK_EX), _START_TIMEOUT_S):
            raise self.error("another process holds start.lock for a minute now; end it")
        try:
            yield
        finally:
            fcntl.flock(self._start_fd, fcntl.LOCK_UN)

    def _is_alive(self) -> bool:
        if not _try_lock(self._server_fd, fcntl.LOCK_SH):
            return True
        fcntl.flock(self._server_fd, fcntl.LOCK_UN)
        return False

    def _read_postmaster(self) -> Postmaster | None:
        try:
            lines = os.fsdecode((self.data / "postmaster.pid").read_bytes()).splitlines()
            return Postmaster(int(lines[0]), int(lines[3]), Path(lines[4]), lines[7].strip() == "ready")
        except (OSError, IndexError, ValueError):
            return None  # it is made, completed and removed as the server comes and goes

    def _was_removed(self) -> bool:
        try:
            return not os.path.samestat(os.fstat(self._start_fd), (self.path / "start.lock").stat())
        except FileNotFoundError:
            return True

    def running(self) -> Postmaster | None:
        """The server if it runs. The lock may be held for a moment by one that dies or goes down."""
        found: Postmaster | None = None

        def is_settled() -> bool:
            nonlocal found
            if not self._is_alive():
                found = None
                return True
            found = self._read_postmaster()
            return found is not None and found.is_ready and found.answering_pid() is not None

        if not _wait_for(is_settled, _START_TIMEOUT_S):
            pid = found.pid if found else "postgres"
            raise self.error(f"its server lives but does not answer; end it (kill {pid}) and try again")
        return found

    def launch(self, settings: Mapping[str, str]) -> Postmaster:
        """Start the server, which must not be running."""
        if (self.path / "PG_VERSION").exists():
            raise self.error(f"this is the data directory of another PostgreSQL server{ELSEWHERE}")
        self._make_reachable()
        if not self.data.exists():
            self._init_data(sync=settings.get("fsync", "on") == "on")
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != VERSION:
            raise self.error(f"made by PostgreSQL {version}, and this is {VERSION}; remove it{ELSEWHERE}")
        socket_dir = self._make_socket_dir()
        enforced = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": '"' + str(socket_dir).replace('"', '""') + '"',
        }
        values = {**_DEFAULTS, **settings, **enforced}
        options = shlex.join(part for name, value in values.items() for part in ("-c", f"{name}={value}"))
        self._remove_stale_files(socket_dir)
        log = self.path / "server.log"
        with suppress(FileNotFoundError):
            log.replace(log.with_suffix(".log.old"))
        # An open file description of its own, which only PostgreSQL and its children keep. pg_ctl gives
        # them a session of their own, too: Ctrl-C in the terminal does not reach them.
        lock_fd = os.open(self.path / "server.lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX)
            # The paths are relative because pg_ctl puts them into a shell command, badly quoted.
            wait = ("--wait", f"--timeout={_START_TIMEOUT_S:.0f}", "--log=server.log")
            done = self._run("pg_ctl", "start", "--pgdata=data", *wait, "-o", options, pass_fds=(lock_fd,))
        finally:
            os.close(lock_fd)
        postmaster = self._read_postmaster()
        if done.returncode or postmaster is None:
            said = log.read_text(errors="replace") if log.exists() else done.stdout
            raise self.error(f"it does not start; mend what it says below{ELSEWHERE}", said[-2000:])
        return postmaster

    def _remove_stale_files(self, socket_dir: Path) -> None:
        # PostgreSQL believes them while any process has the number they name: a zombie, or, in a container
        # that was restarted, just another one. The lock knows better that the server is dead.
        stale = self._read_postmaster()
        if stale and stale.answering_pid() is not None:
            raise self.error(f"its server was started by other means; stop it (kill {stale.pid})")
        for path in (self.data / "postmaster.pid", *socket_dir.glob(".s.PGSQL.*")):
            path.unlink(missing_ok=True)

    def _make_reachable(self) -> None:
        """As root: check that the server's user reaches the folder, and that it reaches the binaries."""
        if self.owner is None:
            return
        test = 'cd "$0" && test -w . || echo folder; test -x "$1" && test -r "$2" || echo binaries'
        share = self.bin_dir.parent / "share" / "postgresql" / "postgres.bki"
        probe = self._run("/bin/sh", "-c", test, str(self.path), str(self.bin_dir / "postgres"), str(share))
        if "folder\n" in probe.stdout:
            who = f"the folder's owner (uid {self.owner[0]})"
            raise self.error(f"as root the server runs as {who}, who cannot reach it{ELSEWHERE}")
        if "binaries\n" in probe.stdout:
            self._server_bin_dir = copy_binaries(self.bin_dir)

    def _new_dir(self) -> Path:
        # What an interrupted start left; a child of its initdb may be writing there still.
        for left in self.path.glob("new-*"):
            shutil.rmtree(left, ignore_errors=True)
        path = Path(tempfile.mkdtemp(prefix="new-", dir=self.path))
        self._give(path)
        return path

    def _give(self, path: Path) -> None:
        if self.owner:
            os.chown(path, *self.owner, follow_symlinks=False)

    def _init_data(self, *, sync: bool) -> None:
        new = self._new_dir()
        # The builtin locale of PostgreSQL 17 and later sorts the same on every machine.
        locale = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8")
        options = ("--username=postgres", "--auth=trust", *locale, *(() if sync else ("--no-sync",)))
        done = self._run("initdb", f"--pgdata={new.name}", *options)
        if done.returncode:
            raise self.error(f"initdb fails; mend what it says below{ELSEWHERE}", done.stdout[-2000:])
        new.rename(self.data)

    def _make_socket_dir(self) -> Path:
        # A name of its own for every data directory: when the folder was removed below a running server,
        # that one removes its socket only a minute later, and must not hit the socket of the next.
        longest = os.fsencode(self.path / "run-XXXXXXXX" / _SOCKET_NAME)
        # libpq takes a comma for a list of hosts, and cannot be told otherwise.
        if len(longest) > _SOCKET_PATH_MAX_BYTES or b"," in longest:
            # Not $TMPDIR, which may be long in itself.
            path = Path(tempfile.mkdtemp(prefix="multitenant-pg-", dir="/tmp"))
        else:
            found = sorted(self.path.glob("run-*"))
            path = found[0] if found else Path(tempfile.mkdtemp(prefix="run-", dir=self.path))
        self._give(path)
        return path

    def join(self) -> None:
        """Take the lock of this user. Needs `exclusively`."""
        fcntl.flock(self._users_fd, fcntl.LOCK_SH)

    def leave(self) -> None:
        """Give up the lock of this user and stop the server if there is no other. Needs `exclusively`."""
        # Asking for the exclusive lock gives up the shared one, whether it is granted or not.
        if not _try_lock(self._users_fd, fcntl.LOCK_EX):
            return
        # postmaster.pid is not written yet where start() was interrupted.
        _wait_for(lambda: self._read_postmaster() is not None or not self._is_alive(), 1)
        postmaster = self._read_postmaster()
        if postmaster is None or self._was_removed():
            return  # PostgreSQL notices within a minute, and ends
        if postmaster.answering_pid() not in {None, postmaster.pid}:
            return  # it runs in another container with the same folder: its pid is another process here
        # PostgreSQL's fast and immediate shutdown. Sent as the owner: as root in somebody's folder, the
        # number must not choose whom it hits. https://www.postgresql.org/docs/18/server-shutdown.html
        for signal_name, seconds in (("INT", _FAST_STOP_TIMEOUT_S), ("QUIT", _IMMEDIATE_STOP_TIMEOUT_S)):
            if not self._is_alive():
                break
            self._run("/bin/sh", "-c", 'kill -s "$0" "$1"', signal_name, str(postmaster.pid))
            _wait_for(lambda: not self._is_alive(), seconds)
        if postmaster.socket_dir.parent != self.path:
            with suppress(OSError):
                postmaster.socket_dir.rmdir()

    def _run(self, program: str, *args: str, pass_fds: tuple[int, ...] = ()) -> Done:
        path = self._server_bin_dir / program
        return run(path, *args, cwd=self.path, owner=self.owner, pass_fds=pass_fds)


def _try_lock(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
