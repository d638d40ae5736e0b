"""A network that fails: a TCP proxy on loopback in front of a server, which can be cut, slowed and truncated."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any

CHUNK = 16384


class Proxy:
    """Passes connections to 127.0.0.1:`target_port` on. Use it in a `with`, or call `close`.

    The settings hold for connections that exist and for new ones, until they are changed.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self._open = True
        self._up = True
        self._delay = 0.0
        self._left: int | None = None
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self.connections = 0
        """Connections that were accepted so far."""
        self.passed = 0
        """Bytes the server's answers had, as far as they were passed on."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> None:
        """Break every connection, and every new one at once, as a network that is gone does."""
        with self._lock:
            self._up = False
        self._break_all()

    def restore(self) -> None:
        """Undo `cut`, `delay` and `truncate`."""
        with self._lock:
            self._up, self._delay, self._left = True, 0.0, None

    def delay(self, seconds: float) -> None:
        """Hold each piece (up to 16 KiB) that the server sends for `seconds`."""
        self._delay = seconds

    def truncate(self, size: int) -> None:
        """After `size` more bytes of answers break the connection; the next ones are whole again."""
        with self._lock:
            self._left = size

    def close(self) -> None:
        """Stop listening and break every connection."""
        self._open = False
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._break_all()

    def _break_all(self) -> None:
        with self._lock:
            sockets, self._sockets = list(self._sockets), set()
        for one in sockets:
            _break(one)

    def _accept(self) -> None:
        while self._open:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        if not self._up:
            _break(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port), timeout=10)
        except OSError:
            _break(client)
            return
        server.settimeout(None)
        with self._lock:
            if not self._up:
                _break(client)
                _break(server)
                return
            self._sockets |= {client, server}
        threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
        self._pump(server, client, True)

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        """Copy one direction until either end closes."""
        try:
            while piece := source.recv(CHUNK):
                if answers:
                    time.sleep(self._delay)
                    piece, ends = self._measure(piece)
                    target.sendall(piece)
                    if ends:
                        break
                else:
                    target.sendall(piece)
            else:  # this direction ended in order: the other may go on
                with suppress(OSError):
                    target.shutdown(socket.SHUT_WR)
                if not answers:
                    return
        except OSError:
            pass
        with self._lock:
            self._sockets -= {source, target}
        _break(source)
        _break(target)

    def _measure(self, piece: bytes) -> tuple[bytes, bool]:
        """What of a piece may pass, and whether the connection breaks after it."""
        with self._lock:
            ends = self._left is not None and self._left < len(piece)
            if self._left is not None:
                piece, self._left = piece[: self._left], None if ends else self._left - len(piece)
            self.passed += len(piece)
        return piece, ends


def _break(one: Any) -> None:
    """Close a connection; what waits on it wakes up."""
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        one.close()
