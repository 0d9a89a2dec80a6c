"""Ends a socket that another thread waits on."""

from __future__ import annotations

import contextlib
import os
import socket


def end_socket(descriptor: int) -> None:
    """Whoever waits on it sees the end of the stream; the descriptor stays its owner's to close.

    Harmless where it has ended by itself, or is no socket.
    """
    # a copy: closing the object that shuts it down must not close the driver's own
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as line:
        line.shutdown(socket.SHUT_RDWR)
