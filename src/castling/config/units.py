"""Sizes, times and rates as people write them.

A plain number is bytes, seconds or bytes per second; a text carries its unit. Decimal
and binary prefixes mean what they say: 1 kB is 1000 bytes, 1 KiB is 1024.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["rate", "seconds", "size", "unlimited_rate"]

_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_SIZES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_TIMES = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
#: nothing that is configured is larger than this
_MOST = 1 << 62


def _split(text: str) -> tuple[float, str] | None:
    found = _NUMBER.fullmatch(text)
    return (float(found[1]), found[2]) if found else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def size(value: Any) -> int:
    """Bytes of 67108864 or "64MiB"; ValueError says what a size looks like."""
    number: float | None = value if _is_number(value) else None
    if isinstance(value, str) and (parts := _split(value)) is not None:
        factor = _SIZES.get(parts[1].lower())
        number = None if factor is None else parts[0] * factor
    if number is None or not 0 <= number <= _MOST or number != int(number):
        raise ValueError('a size is a number of bytes or a text such as "64MiB" or "10GB"')
    return int(number)


def seconds(value: Any) -> float:
    """Seconds of 1.5 or "24h"; ValueError says what a time looks like."""
    number: float | None = value if _is_number(value) else None
    if isinstance(value, str) and (parts := _split(value)) is not None:
        factor = _TIMES.get(parts[1].lower())
        number = None if factor is None else parts[0] * factor
    if number is None or not 0 <= number <= _MOST:
        raise ValueError(
            'a time is a number of seconds or a text such as "500ms", "90s", "15m", "24h" or "7d"'
        )
    return float(number)


def rate(value: Any) -> int:
    """Bytes per second of 1000000 or "10MiB/s"; ValueError says what a rate looks like."""
    if isinstance(value, str):
        amount, slash, per = value.partition("/")
        if slash and per.strip() != "s":
            raise ValueError('a rate is per second, such as "10MiB/s"')
        value = amount
    try:
        return size(value)
    except ValueError:
        raise ValueError('a rate is bytes per second or a text such as "10MiB/s"') from None


def unlimited_rate(value: Any) -> int | None:
    """A rate above zero, or None for "unlimited"."""
    if value is None or value == "unlimited":
        return None
    found = rate(value)
    if found == 0:
        raise ValueError('0 would never send anything; write "unlimited" for no limit')
    return found
