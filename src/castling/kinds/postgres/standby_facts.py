"""Whether a physical standby of the source would be gone on with once it is promoted: asked by the check.

The primary shows which standbys stream from it, with which slot, and whether one of them keeps slots in step;
what the standby itself is set to can only be guessed from that. The process that keeps slots in step is a
client of the primary, called as the standby is or, where that has no name, by what it does.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from castling.kinds.base import Finding, Severity
from castling.kinds.postgres.facts import StandbyFacts, warning

__all__ = ["judge_standbys", "read_standbys"]

#: failover slots exist from this version on
_FAILOVER = 170000
_ASKED = """
SELECT r.application_name, s.slot_name, s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL,
       EXISTS (SELECT FROM pg_catalog.pg_stat_activity a
                WHERE a.backend_type = 'client backend'
                  AND (a.application_name = r.application_name
                       OR a.application_name LIKE '%slotsync worker')),
       pg_catalog.current_setting('synchronized_standby_slots', true)
  FROM pg_catalog.pg_stat_replication r
  LEFT JOIN pg_catalog.pg_replication_slots s ON s.active_pid = r.pid
 WHERE (s.slot_type = 'physical' OR s.slot_name IS NULL) AND r.state IN ('streaming', 'catchup')
   AND r.application_name NOT IN ('pg_receivewal', 'pg_basebackup')
"""
_ON_STANDBY = (
    "on the standby: sync_replication_slots = on, hot_standby_feedback = on, primary_slot_name, and a dbname"
    " in primary_conninfo"
)


async def read_standbys(connection: AsyncConnection[Any]) -> list[StandbyFacts]:
    """Those that the user may see."""
    cursor = await connection.execute(_ASKED.encode())
    found = []
    for name, slot, feeds_back, syncs, awaited in await cursor.fetchall():
        names = {each.strip().strip('"') for each in (awaited or "").split(",")}
        found.append(StandbyFacts(name or "?", slot, bool(feeds_back), slot in names, bool(syncs)))
    return found


def judge_standbys(version: int, standbys: list[StandbyFacts], addresses: int) -> list[Finding]:
    """What a promotion of each would mean for the group. `addresses`: how many the settings name."""
    found: list[Finding] = []
    for each in standbys:
        problems = _problems(version, each, addresses)
        found += [warning(f"standby {each.name}", code, message, hint) for code, message, hint in problems]
        if not problems:
            told = "when it is promoted, the group goes on with it"
            found.append(Finding(Severity.OK, f"standby {each.name}", "failover-ready", told))
    return found


def _problems(version: int, standby: StandbyFacts, addresses: int) -> list[tuple[str, str, str]]:
    """Code, message and way out of each."""
    if version < _FAILOVER:
        return [
            (
                "no-failover-slots",
                "when it is promoted, the group stops (continuity-lost): before PostgreSQL 17 a standby has"
                " no copy of the slot",
                "a new copy is needed then: `castling group start GROUP --reseed`",
            )
        ]
    found = []
    if standby.slot is None or not standby.feeds_back or not standby.syncs:
        lacks = [
            *(["a slot of its own"] if standby.slot is None else []),
            *([] if standby.feeds_back else ["hot_standby_feedback"]),
            *([] if standby.syncs else ["sync_replication_slots"]),
        ]
        found.append(
            (
                "slots-not-synchronized",
                f"it does not keep the stream's slot in step (it lacks {', '.join(lacks)}): when it is"
                " promoted, the group stops (continuity-lost)",
                _ON_STANDBY,
            )
        )
    if not standby.is_awaited:
        found.append(
            (
                "standby-not-awaited",
                "the backup may hold what it never got: when it is promoted then, the group stops"
                " (continuity-lost)",
                f"ALTER SYSTEM SET synchronized_standby_slots = '{standby.slot or 'its slot'}' on the source",
            )
        )
    if addresses < 2:
        found.append(
            (
                "one-address",
                "the group knows one address of the source: after a promotion it must be told the new one",
                'name both in host, such as "one,other"; or edit, deploy and start the group then',
            )
        )
    return found
