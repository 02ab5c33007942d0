"""How figures and states are said to people. Pure. What is not known is `unknown`, never a zero."""

from __future__ import annotations

import datetime
from typing import Any

__all__ = ["FILTERS", "tone"]

#: what a state means for whoever looks: good, busy (by itself on its way), off (on purpose), bad, unknown
_TONES = {
    "running": "good",
    "up": "good",
    "ok": "good",
    "equal": "good",
    "done": "good",
    "differs": "bad",
    "starting": "busy",
    "seeding": "busy",
    "waiting": "busy",
    "copying": "busy",
    "releasing": "busy",
    "pausing": "warn",
    "on-hold": "warn",
    "held": "warn",
    "warning": "warn",
    "journal-full": "bad",
    "given-up": "bad",
    "failed": "bad",
    "lost": "bad",
    "down": "bad",
    "refused": "bad",
    "stopped": "off",
    "new": "off",
    "unknown": "unknown",
}


def tone(state: str | None) -> str:
    """The class by which a state is shown; one that nobody knows is unknown."""
    return _TONES.get(str(state), "unknown")


def seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else _long(value)


def _long(value: float) -> str:
    return f"{value / 3600:.1f} h" if value < 172_800 else f"{value / 86400:.0f} days"


def size(value: float | None) -> str:
    if value is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def count(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}".replace(",", " ")


def rate(value: float | None) -> str:
    if value is None:
        return "rate unknown"
    return f"{value:,.0f}/s".replace(",", " ") if value >= 10 else f"{value:.1f}/s"


def forecast(value: float | None) -> str:
    """Of a time until something is full: None is `not in sight`, which is what the ends mean by it."""
    return "not in sight" if value is None else f"in {seconds(value)}"


def moment(time_ns: int | None) -> str:
    """UTC; a script on the page shows it in the reader's own time zone."""
    return "unknown" if time_ns is None else _utc(time_ns).strftime("%Y-%m-%d %H:%M:%S UTC")


def machine_time(time_ns: int) -> str:
    return _utc(time_ns).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _utc(time_ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time_ns / 1e9, datetime.UTC)


def position(value: str | None) -> str:
    return value or "unknown"


def fields(value: dict[str, Any]) -> str:
    """The fields of an event, on one line."""
    said = []
    for key, each in value.items():
        if isinstance(each, dict):
            each = each.get("message") or each.get("code") or "…"
        if each not in (None, "", [], {}):
            said.append(f"{key} {each}")
    return " · ".join(said)


FILTERS = {
    "tone": tone,
    "seconds": seconds,
    "size": size,
    "count": count,
    "rate": rate,
    "forecast": forecast,
    "moment": moment,
    "machine_time": machine_time,
    "position": position,
    "fields": fields,
}
