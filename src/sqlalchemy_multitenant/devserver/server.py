"""A handle on the embedded server: `start()` joins it, `find()` only looks."""

from __future__ import annotations

import multiprocessing.util
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from ..errors import MissingExtraError
from .binaries import FEATURE, VERSION, find_bin_dir, is_root, run
from .errors import DevServerError, os_errors_translated
from .folder import Folder, Postmaster


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
        raise MissingExtraError(FEATURE, "embedded") from exc
    cache_path = platformdirs.site_cache_path if is_root() else platformdirs.user_cache_path
    return cache_path("sqlalchemy-multitenant") / f"pg{VERSION}"


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
    folder = Folder.open(find_bin_dir(), data_dir or default_data_dir(), create=True)
    try:
        with os_errors_translated(folder.path), folder.exclusively():
            folder.join()
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
    folder = Folder.open(find_bin_dir(), path, create=False)
    try:
        with os_errors_translated(folder.path), folder.exclusively():
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

    def __init__(self, folder: Folder, postmaster: Postmaster, *, joined: bool) -> None:
        self.data_dir, self.bin_dir = folder.path, folder.bin_dir
        self.pid, self.port, self.socket_dir = postmaster.pid, postmaster.port, postmaster.socket_dir
        self._folder = folder if joined else None
        self._user_pid = os.getpid()
        if joined:
            # atexit would run this before multiprocessing joins its children, and so take the server
            # from them; it is not run in such a child at all. A negative priority comes after the join.
            self._at_exit = multiprocessing.util.Finalize(None, self._release_at_exit, exitpriority=-50)

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
        done = run(self.bin_dir / "createdb", *options, "--template=template0", "--", name)
        if done.returncode:
            raise DevServerError(str(self.data_dir), f"cannot create the database {name!r}", done.stdout)

    def ensure_database(self, name: str) -> None:
        """Create a database unless it is there.

        Raises:
            DevServerError: the server refuses.
        """
        if name == "postgres":  # every server has it
            return
        try:
            self.create_database(name)
        except DevServerError as error:
            if "already exists" not in error.log_tail:
                raise

    def _release_at_exit(self) -> None:
        try:
            self.release()
        except KeyboardInterrupt:
            # The server has got already what ends it. To die of the signal is to say so without a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)

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
