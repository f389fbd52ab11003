"""Ports for real processes."""

import random
import socket

__all__ = ["free_port"]


def free_port() -> int:
    """The first of sixteen ports in a row that were free a moment ago: SuperLink's, then the SuperNodes'.

    Below those that the kernel gives to outgoing connections, any of which could take one meanwhile.
    """
    while True:
        first = random.SystemRandom().randrange(20000, 32000, 16)
        try:
            for port in range(first, first + 16):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
