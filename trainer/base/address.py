"""Addresses of this machine, as other machines reach them.

No name is looked up: Debian maps a host's own name to 127.0.1.1, and a container's may not resolve.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator

EVERY_ADDRESS = ("", "0.0.0.0", "::")
SOMEWHERE_ELSE = ("192.0.2.1", "2001:db8::1")  # set aside for documentation: nobody's
DISCARD_PORT = 9
LAST_PORT = 65_535
SIOCGIFADDR = 0x8915


def reachable_address(towards: str | None = None) -> str:
    """The address by which other machines reach this one; 127.0.0.1 where it has none.

    Args:
        towards: a machine that shall reach it; None, or one that is this machine: any other.
    """
    for target in (towards, *SOMEWHERE_ELSE):
        address = _source_address(target) if target else None
        if address is not None and not is_loopback(address):
            return address
    others = (address for _, address in interfaces() if not is_loopback(address))
    return next(others, "127.0.0.1")


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:  # a name
        return False


def with_port(address: str, port: int) -> str:
    """ "host:port"; an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address; None: none has."""
    return next((name for name, its in interfaces() if its == address), None)


def interfaces() -> Iterator[tuple[str, str]]:
    """Name and IPv4 address of each network interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
            except OSError:  # it has no address
                continue
            yield name, socket.inet_ntoa(answer[20:24])


def _source_address(target: str) -> str | None:
    """Our end of the way to `target`. Nothing is sent: connecting a datagram socket only routes."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    try:
        target.encode("idna")  # a name that is none; the socket would say so by a TypeError
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target, DISCARD_PORT))
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError):  # no route, no such name, no IPv6
        return None
