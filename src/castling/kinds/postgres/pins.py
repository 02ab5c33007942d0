"""What keeps the source's log, and how long that can go on. Pure.

A slot keeps the log from its `restart_lsn` on: what the backup has not hardened, but also everything since
the oldest transaction that is still open began, because its changes may be anywhere in it. So a session that
was forgotten inside a transaction fills the source's disk though the stream is up to date.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Growth", "OpenTransaction", "SlotState", "limit_warnings", "pin_warnings"]

#: transactions open for less than this are nothing unusual, seconds
OLD_S = 300.0
#: less log than this is not worth naming who keeps it, bytes
WORTH_BYTES = 256 << 20
#: an end that is nearer than this is worth a warning, seconds
NEAR_S = 6 * 3600.0
#: transactions named at once
_NAMED = 5


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """One that has written. `gid`: of a prepared one, which belongs to no session."""

    age_s: float
    user: str
    pid: int | None = None
    application: str = ""
    state: str = ""
    gid: str | None = None

    def __str__(self) -> str:
        since = f"open for {_time(self.age_s)}"
        if self.gid is not None:
            return f"prepared transaction '{self.gid}' of {self.user}, {since}"
        called = f" ({self.application})" if self.application else ""
        return f"process {self.pid} of {self.user}{called}, {self.state or 'active'}, {since}"

    @property
    def way_out(self) -> str:
        if self.gid is not None:
            return f"ROLLBACK PREPARED '{self.gid.replace(chr(39), chr(39) * 2)}' or COMMIT PREPARED"
        return f"SELECT pg_terminate_backend({self.pid})"


@dataclass(frozen=True, slots=True)
class SlotState:
    """`retained`: bytes of log that the slot keeps; `left`: bytes until the server takes the log away from
    it, None: it never does. `status` as in pg_replication_slots.wal_status. `waiting`: bytes of it that were
    not acknowledged; the rest is pinned by open transactions."""

    retained: int
    status: str
    left: int | None
    open: tuple[OpenTransaction, ...] = ()
    waiting: int = 0


@dataclass(slots=True)
class Growth:
    """How fast what a slot keeps grows, by looks of the last `SPAN_S` seconds."""

    SPAN_S = 600.0
    LEAST_S = 20.0
    _looks: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, at_s: float, retained: int) -> None:
        self._looks.append((at_s, retained))
        while self._looks[0][0] < at_s - self.SPAN_S:
            self._looks.popleft()

    def forget(self) -> None:
        self._looks.clear()

    @property
    def bytes_per_s(self) -> float | None:
        """None: not looked at for long enough. Below 0: it shrinks."""
        if not self._looks:
            return None
        (first_s, first), (last_s, last) = self._looks[0], self._looks[-1]
        return None if last_s - first_s < self.LEAST_S else (last - first) / (last_s - first_s)

    def lasts_s(self, left: int | None) -> float | None:
        """Seconds until `left` more bytes are kept; None: that is not known, or never."""
        rate = self.bytes_per_s
        return None if left is None or rate is None or rate <= 0 else left / rate


def pin_warnings(slot: SlotState, *, alarm: int, lasts_s: float | None) -> list[dict[str, Any]]:
    """In the form of a report's warnings."""
    found = []
    kept = f"the source keeps {_size(slot.retained)} of log for the slot"
    if slot.status in ("unreserved", "lost"):
        found.append(
            {
                "code": "wal-unreserved",
                "message": f"{kept}, more than max_slot_wal_keep_size lets it: the server may take it away",
                "hint": "let the backup catch up now; once log is gone, only a new copy helps",
            }
        )
    elif slot.retained > alarm:
        soon = "" if lasts_s is None else f"; at this rate the server takes it away in {_time(lasts_s)}"
        found.append(
            {
                "code": "wal-alarm",
                "message": f"{kept}, more than wal_alarm ({_size(alarm)}){soon}",
                "hint": "is the link up, and the backup's journal not full? What the slot keeps is freed"
                " as the backup hardens it, and as old transactions end",
            }
        )
    old = sorted((each for each in slot.open if each.age_s > OLD_S), key=lambda each: -each.age_s)
    if old and slot.retained > WORTH_BYTES:
        named = "; ".join(str(each) for each in old[:_NAMED]) + ("; …" if len(old) > _NAMED else "")
        found.append(
            {
                "code": "wal-pinned",
                "message": f"{kept}, and can't free what was written since {named}",
                "hint": f"end it on the source: {old[0].way_out}",
            }
        )
    return found


def limit_warnings(
    slot: SlotState, *, limit: int | None, limit_in_s: float | None, disk_full_in_s: float | None
) -> list[dict[str, Any]]:
    """That the slot will be given up, or the source's disk will be full, before long."""
    found = []
    if limit is not None and limit_in_s is not None and limit_in_s < NEAR_S:
        found.append(
            {
                "code": "wal-limit-near",
                "message": f"the source keeps {_size(slot.retained)} of log for the slot; at this rate it is"
                f" given up in {_time(limit_in_s)}, at wal_limit ({_size(limit)})",
                "hint": "let the backup catch up, or raise wal_limit if the source's disk has the room",
            }
        )
    if disk_full_in_s is not None and disk_full_in_s < NEAR_S and slot.retained > WORTH_BYTES:
        found.append(
            {
                "code": "wal-disk-near",
                "message": f"the disk of the source's log is full in {_time(disk_full_in_s)} at this rate",
                "hint": "a source whose log has no room stops: let the backup catch up, set wal_limit,"
                " or make room",
            }
        )
    return found


def _size(size: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << power:
            return f"{size / (1 << power):.1f} {unit}"
    return f"{size} bytes"


def _time(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
