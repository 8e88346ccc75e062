"""Addresses of networks and of their cards: `inet`, `cidr`, `macaddr`, `macaddr8`. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final, NamedTuple

from walpool.postgres.spelling.spelling import Bad, Limits, Read, Spelling, always, plain_text

__all__ = ["CIDR", "INET", "MACADDR", "MACADDR8"]

_BITS: Final = re.compile(r"\d{1,3}", re.ASCII)
_PAIR: Final = "[0-9a-f]{2}"
_FAMILIES: Final = {4: 2, 6: 3}  # the server's numbers, whatever the machine's are


class _Address(NamedTuple):
    address: IPv4Address | IPv6Address
    bits: int


def _inet(value: Any, _: Limits) -> str:
    return _written(_parsed(plain_text(value, "addresses")))


def _cidr(value: Any, _: Limits) -> str:
    found = _parsed(plain_text(value, "networks"))
    if int(found.address) & ((1 << (found.address.max_prefixlen - found.bits)) - 1):
        raise Bad("a network with bits behind its mask")
    return _written(found)


def _parsed(text: str) -> _Address:
    host, slash, bits = text.partition("/")
    try:
        address = ip_address(host)
    except ValueError:
        raise Bad("TEXT that is no address as 10.0.0.1 or 10.0.0.0/8") from None
    most = address.max_prefixlen
    if "%" in host or (slash and not (_BITS.fullmatch(bits) and int(bits) <= most)):
        raise Bad("TEXT that is no address as 10.0.0.1 or 10.0.0.0/8")
    return _Address(address, int(bits) if slash else most)


def _written(found: _Address) -> str:
    shown = str(found.address) if isinstance(found.address, IPv4Address) else _groups(found.address)
    return f"{shown}/{found.bits}"


def _groups(address: IPv6Address) -> str:
    """Return what the server's `pg_inet_net_ntop` makes of an address.

    The first of the longest runs of zeros becomes `::`; what stands for an address of IPv4 ends in that.
    """
    words = [int.from_bytes(address.packed[at : at + 2], "big") for at in range(0, 16, 2)]
    start, length = _zeros(words)
    shown = [f"{word:x}" for word in words]
    if start == 0 and (length == 6 or (length == 5 and words[5] == 0xFFFF)):
        shown[6:] = [str(IPv4Address(address.packed[12:]))]
    if length < 2:
        return ":".join(shown)
    return f"{':'.join(shown[:start])}::{':'.join(shown[start + length :])}"


def _zeros(words: list[int]) -> tuple[int, int]:
    """Return where the first of the longest runs of zeros begins, and how long it is."""
    best = (0, 0)
    at = 0
    while at < len(words):
        end = at
        while end < len(words) and not words[end]:
            end += 1
        if end - at > best[1]:
            best = (at, end - at)
        at = end + 1
    return best


def _address_wire(*, is_cidr: bool) -> Any:
    def wire(text: str) -> bytes:
        address, bits = _parsed(text)
        packed = address.packed
        return bytes([_FAMILIES[address.version], bits, is_cidr, len(packed)]) + packed

    return wire


def _card(pairs: int) -> Read:
    separated = re.compile(
        f"{_PAIR}(?:([:-]){_PAIR})(?:\\1{_PAIR}){{{pairs - 2}}}|(?:{_PAIR}){{{pairs}}}", re.IGNORECASE
    )

    def read(value: Any, _: Limits) -> str:
        text = plain_text(value, "addresses of cards")
        if not separated.fullmatch(text):
            raise Bad(f"TEXT that is no address of {pairs} bytes as 08:00:2b:01:02:03")
        return bytes.fromhex(re.sub("[:-]", "", text)).hex(":")

    return read


def _card_wire(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


INET: Final = Spelling(read=_inet, zero=always("0.0.0.0/32"), wire=_address_wire(is_cidr=False))
CIDR: Final = Spelling(read=_cidr, zero=always("0.0.0.0/32"), wire=_address_wire(is_cidr=True))
MACADDR: Final = Spelling(read=_card(6), zero=always("00:00:00:00:00:00"), wire=_card_wire)
MACADDR8: Final = Spelling(read=_card(8), zero=always("00:00:00:00:00:00:00:00"), wire=_card_wire)
