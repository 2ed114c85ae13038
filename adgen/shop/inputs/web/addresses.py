"""Which addresses a link may lead to: public ones only, so that no feed can make us ask a machine inside."""

import ipaddress
import socket
from collections.abc import Callable

from adgen.errors import FetchError

Resolve = Callable[[str, int], list[str]]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_V4_COMPATIBLE = ipaddress.ip_network("::/96")


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system knows them. FetchError: unreachable."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError("unreachable", f"{host}: {error}") from None
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def is_public(address: str) -> bool:
    """Whether anybody on the internet could mean this address: not loopback, private, link-local, shared, multicast or reserved,
    nor one of these inside an IPv6 address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        return False
    return ip.version == 4 or all(is_public(str(inside)) for inside in _v4_inside(ip))


def _v4_inside(ip: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in _NAT64 or ip in _V4_COMPATIBLE:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [each for each in found if each is not None]


def checked_address(host: str, port: int, resolver: Resolve = resolve, is_allowed: Callable[[str], bool] = is_public) -> str:
    """The address to connect to. FetchError: inside_address where one of the host's addresses is not public."""
    addresses = resolver(host, port)
    refused = [address for address in addresses if not is_allowed(address)]
    if refused or not addresses:
        raise FetchError("inside_address", f"{host} is {', '.join(refused) or 'nowhere'}; only public addresses are asked")
    return addresses[0]
