"""Addresses that no hosted model is called at, whatever a name resolves to.

A cloud's metadata service hands out credentials to whoever asks it from the machine. Models are
served on the machine itself and in private networks, so those are called; only the configuration
says where, and no client.
"""

import ipaddress
import socket
from typing import Any

import aiohttp

from fusewire_worker_remote.errors import Failure

_METADATA = frozenset(
    {
        ipaddress.ip_address("fd00:ec2::254"),  # Amazon, by IPv6
        ipaddress.ip_address("100.100.100.200"),  # Alibaba
        ipaddress.ip_address("168.63.129.16"),  # Azure
    }
)
"""Metadata services that are not link-local, as 169.254.169.254 is."""


class RefusedConnectionError(OSError):
    """An address that is not called."""


def is_forbidden(address: str) -> bool:
    """Whether it is link-local, a metadata service, multicast or no address of a host.

    >>> is_forbidden("169.254.169.254"), is_forbidden("::ffff:169.254.169.254")
    (True, True)
    >>> is_forbidden("10.0.0.7"), is_forbidden("127.0.0.1"), is_forbidden("2606:4700::1")
    (False, False, False)
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA


def open_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for an address as `getaddrinfo` returns it; aiohttp calls this for each it tries.

    Raises:
        RefusedConnectionError: it is not called.
    """
    family, kind, protocol, _, target = address
    if is_forbidden(target[0]):
        raise RefusedConnectionError(f"{target[0]} is link-local, a metadata service or no host")
    return socket.socket(family, kind, protocol)


def forbidden(error: Exception) -> Failure | None:
    """The failure that a refused address is; None if the error is another."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if not isinstance(cause, RefusedConnectionError):
        return None
    message = "base_url leads to an address that is not called: link-local, or a metadata service"
    return Failure("bad_request", message, retryable=False)
