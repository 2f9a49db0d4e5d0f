"""Processes and threads between the client and the server: a counting proxy, and PgBouncer."""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _address(url: URL) -> tuple[str, int]:
    """The host (a folder, for a Unix socket) and the port of the server."""
    host = url.host or str(url.query.get("host", "127.0.0.1"))
    return host, url.port or int(str(url.query.get("port", 5432)))


def _connect(url: URL) -> socket.socket:
    host, port = _address(url)
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{host}/.s.PGSQL.{port}")
    return connection


class CountingProxy:
    """Passes bytes on, and counts how often the client speaks after the server has: round trips."""

    def __init__(self, upstream: URL) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = upstream.set(host="127.0.0.1", port=self._listener.getsockname()[1], query={})
        self.trips = 0
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        self._listener.settimeout(0.1)
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            server = _connect(self._upstream)
            thread = threading.Thread(target=self._pump, args=(client, server), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        other = {client: server, server: client}
        server_spoke = True
        with selectors.DefaultSelector() as selector, client, server:
            for end in other:
                selector.register(end, selectors.EVENT_READ)
            while not self._closing.is_set():
                for key, _ in selector.select(0.1):
                    source: socket.socket = key.fileobj  # type: ignore[assignment]
                    try:
                        data = source.recv(65536)
                        if data:
                            other[source].sendall(data)
                    except OSError:  # whoever closes does not wait for the last answer
                        return
                    if not data:
                        return
                    if source is client:
                        self.trips += server_spoke
                        server_spoke = False
                    else:
                        server_spoke = True

    def settled_trips(self) -> int:
        """The round trips so far, those included that nobody has waited for."""
        while True:
            before = self.trips
            time.sleep(0.05)
            if self.trips == before:
                return before

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()


@contextmanager
def pgbouncer(upstream: URL) -> Iterator[URL]:
    """A PgBouncer in transaction mode, with one connection to the server for all its clients."""
    binary = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    assert binary is not None
    host, port = _address(upstream)
    listen = free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        ini = Path(folder) / "pgbouncer.ini"
        ini.write_text(
            f"[databases]\n* = host={host} port={port} user={upstream.username or 'postgres'}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {listen}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 1\nmax_client_conn = 100\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )
        # PgBouncer refuses to be root, and the server's socket is open to its owner alone.
        owner = Path(host).stat().st_uid if host.startswith("/") else 65534
        process = subprocess.Popen(
            [binary, "-q", str(ini)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=owner if os.geteuid() == 0 else None,
        )
        try:
            deadline = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", listen), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, "pgbouncer did not start"
                    assert time.monotonic() < deadline, "pgbouncer does not answer"
                    time.sleep(0.02)
            yield upstream.set(host="127.0.0.1", port=listen, query={})
        finally:
            process.terminate()
            process.wait(10)
