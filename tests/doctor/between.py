"""What stands between a client and a server, and changes what the server says."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Change = Callable[[bytes], bytes]


@contextlib.contextmanager
def something_between(host: str, port: int, change: Change) -> Iterator[int]:
    """The port of a proxy; `change` sees each piece of what the server sends."""
    listener = socket.create_server(("127.0.0.1", 0))
    sockets: list[socket.socket] = [listener]

    def carry(source: socket.socket, sink: socket.socket, through: Change) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(through(piece))
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((host, port))
                sockets.extend((client, server))
                for source, sink, through in (
                    (client, server, bytes),
                    (server, client, change),
                ):
                    threading.Thread(
                        target=carry, args=(source, sink, through), daemon=True
                    ).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        for each in sockets:
            each.close()
        accepting.join()
