"""An HTTP proxy that knows CONNECT, records what it is asked, and takes addresses from a table."""

import contextlib
import socket
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

_READ_BYTES = 65536


class ConnectProxy:
    """Enter it to serve on `url`.

    Args:
        routes: "host:port" as asked -> where the connection really goes; others are refused.
        login: base64 of user:password that must come along; "": none.

    Attributes:
        asked: the first line of each request.
    """

    def __init__(self, routes: Mapping[str, tuple[str, int]] | None = None, login: str = "") -> None:
        self.routes, self.asked = dict(routes or {}), list[str]()
        self._login = login
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request and (read := connection.recv(_READ_BYTES)):
            request += read
        lines = request.decode("latin-1").splitlines() or [""]
        self.asked.append(lines[0])
        target = self.routes.get(lines[0].split(" ")[1]) if lines[0].startswith("CONNECT ") else None
        if self._login and f"Proxy-Authorization: Basic {self._login}" not in lines:
            status = "407 Proxy Authentication Required"
        else:
            status = "200 Connection established" if target else "403 Forbidden"
        far = None
        if status.startswith("200"):
            try:
                far = socket.create_connection(target)
            except OSError:
                status = "502 Bad Gateway"
        connection.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
        if far is None:
            connection.close()
            return
        threading.Thread(target=_pump, args=(connection, far), daemon=True).start()
        _pump(far, connection)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_READ_BYTES):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
