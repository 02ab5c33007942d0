"""What the source says of itself before a stream is opened: which server, which history, which slot."""

from __future__ import annotations

from castling.errors import SourceError, SourceUnreachable
from castling.kinds.postgres.giving_up import given_up_size
from castling.kinds.postgres.lsn import parse_lsn
from castling.kinds.postgres.promotion import switch_point
from castling.kinds.postgres.replication import ReplicationConnection
from castling.kinds.postgres.session import Source, created_lsn

__all__ = ["read_source", "take_memory"]

#: what a server may take for the decoding of large transactions, where nobody has said, bytes: what it keeps
#: is sent when it commits and applied meanwhile; what it has no room for is spooled first, and costs more
DECODING_MEMORY = 256 << 20


async def read_source(
    connection: ReplicationConnection, name: str, *, timeline_before: int | None = None
) -> Source:
    """What the server says of itself and of the stream's slot and publication, both called `name`;
    `timeline_before`: the timeline that the journal was written from."""
    system_id, timeline, _, database = (await connection.query("IDENTIFY_SYSTEM"))[0]
    rows = await connection.query(
        "SELECT pg_catalog.current_setting('server_version_num'),"
        " CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()"
        " ELSE pg_catalog.pg_current_wal_flush_lsn() END,"
        " (SELECT pg_catalog.obj_description(oid, 'pg_publication') FROM pg_catalog.pg_publication"
        f" WHERE pubname = '{name}')"
    )
    slots = await connection.query(
        "SELECT plugin, database, confirmed_flush_lsn, wal_status, pg_catalog.to_jsonb(s) ->> 'synced',"
        " pg_catalog.to_jsonb(s) ->> 'failover'"  # columns of 17 and later
        f" FROM pg_catalog.pg_replication_slots s WHERE slot_name = '{name}'"
    )
    plugin, slot_database, confirmed, wal_status, synced, failover = slots[0] if slots else [None] * 6
    version, flush, comment = rows[0]
    return Source(
        system_id=str(system_id),
        timeline=int(str(timeline)),
        database=str(database),
        server_version=int(str(version)),
        flush_lsn=parse_lsn(str(flush)),
        slot_plugin=plugin,
        slot_database=slot_database,
        confirmed_lsn=None if confirmed is None else parse_lsn(confirmed),
        wal_status=wal_status,
        created_lsn=created_lsn(comment),
        given_up=given_up_size(comment),
        slot_synced=synced == "true",
        slot_failover=failover == "true",
        left_at=await _left_at(connection, int(str(timeline)), timeline_before),
    )


async def take_memory(connection: ReplicationConnection, wanted: int | None) -> None:
    """Let the connection's walsender decode in `wanted` bytes of memory; None: see `DECODING_MEMORY`."""
    if wanted is None:
        rows = await connection.query(
            "SELECT source FROM pg_catalog.pg_settings WHERE name = 'logical_decoding_work_mem'"
        )
        if rows[0][0] != "default":
            return
        wanted = DECODING_MEMORY
    await connection.query(f"SET logical_decoding_work_mem = {wanted >> 10}")


async def _left_at(connection: ReplicationConnection, timeline: int, before: int | None) -> int | None:
    """Where the server left the timeline `before`; None: it is on it still, or does not know to have been."""
    if before is None or timeline <= before:
        return None
    try:
        rows = await connection.query(f"TIMELINE_HISTORY {timeline}")
    except SourceUnreachable:
        raise
    except SourceError:  # the file is gone: then nothing is proven
        return None
    return switch_point(str(rows[0][1]), before)
