"""Who keeps the source's log is named, and only when it matters."""

from __future__ import annotations

import pytest

from castling.kinds.postgres.pins import (
    NEAR_S,
    OLD_S,
    WORTH_BYTES,
    Growth,
    OpenTransaction,
    SlotState,
    limit_warnings,
    pin_warnings,
)

_OLD = OpenTransaction(7300.0, "app", 42, "billing", "idle in transaction")
_PREPARED = OpenTransaction(400.0, "xa", gid="it's 1")
_ALARM = 16 << 30


def _codes(slot: SlotState, alarm: int = _ALARM) -> list[str]:
    return [each["code"] for each in pin_warnings(slot, alarm=alarm, lasts_s=None)]


def test_little_log_and_young_transactions_are_nothing_to_speak_of() -> None:
    assert _codes(SlotState(WORTH_BYTES, "reserved", None, (_OLD,))) == []
    young = OpenTransaction(OLD_S, "app", 1)
    assert _codes(SlotState(WORTH_BYTES + 1, "reserved", None, (young,))) == []


def test_old_transactions_are_named_with_the_way_out() -> None:
    [told] = pin_warnings(
        SlotState(WORTH_BYTES + 1, "reserved", None, (_PREPARED, _OLD)), alarm=_ALARM, lasts_s=None
    )
    assert told["code"] == "wal-pinned" and "256.0 MiB" in told["message"]
    assert "process 42 of app (billing), idle in transaction, open for 2.0 h" in told["message"]
    assert "prepared transaction 'it's 1' of xa, open for 7 min" in told["message"]
    assert told["hint"].endswith("SELECT pg_terminate_backend(42)")
    assert _PREPARED.way_out.startswith("ROLLBACK PREPARED 'it''s 1'")


def test_more_than_the_alarm_says_how_long_it_lasts() -> None:
    slot = SlotState(2 << 30, "extended", 1 << 30)
    assert _codes(slot, alarm=2 << 30) == []
    [told] = pin_warnings(slot, alarm=1 << 30, lasts_s=7200.0)
    assert told["code"] == "wal-alarm" and "2.0 GiB" in told["message"] and "in 2.0 h" in told["message"]


@pytest.mark.parametrize("status", ["unreserved", "lost"])
def test_a_slot_beyond_its_limit_is_told_however_little_it_is(status: str) -> None:
    assert _codes(SlotState(1 << 20, status, 0)) == ["wal-unreserved"]


def test_an_end_that_is_near_is_told() -> None:
    slot = SlotState(1 << 30, "extended", None)
    assert limit_warnings(slot, limit=None, limit_in_s=None, disk_full_in_s=None) == []
    assert limit_warnings(slot, limit=2 << 30, limit_in_s=NEAR_S, disk_full_in_s=NEAR_S) == []
    [limit, disk] = limit_warnings(slot, limit=2 << 30, limit_in_s=7200.0, disk_full_in_s=60.0)
    assert limit["code"] == "wal-limit-near" and "2.0 h" in limit["message"] and "2.0 GiB" in limit["message"]
    assert disk["code"] == "wal-disk-near" and "60 s" in disk["message"]
    idle = SlotState(1 << 20, "reserved", None)
    assert limit_warnings(idle, limit=None, limit_in_s=None, disk_full_in_s=60.0) == [], (
        "not the slot's doing"
    )


def test_a_forecast_needs_looks_that_lie_apart_and_growth() -> None:
    growth = Growth()
    assert growth.bytes_per_s is None and growth.lasts_s(100) is None
    growth.add(0.0, 1000)
    growth.add(growth.LEAST_S - 1, 2000)
    assert growth.lasts_s(100) is None, "two looks right after one another say nothing"
    growth.add(40.0, 5000)
    assert growth.bytes_per_s == 100.0 and growth.lasts_s(1000) == 10.0
    assert growth.lasts_s(None) is None, "no limit is no end"
    growth.add(growth.SPAN_S + 1, 0)
    assert growth.bytes_per_s is not None and growth.bytes_per_s < 0 and growth.lasts_s(1000) is None
    growth.forget()
    assert growth.bytes_per_s is None
