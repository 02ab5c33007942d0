"""The guard that a fenced database has: what refuses every write that is not Castling's.

A statement's trigger on each table of the group, which fires in every session: ENABLE ALWAYS, so that one
that makes itself a replication replica is refused too; of superusers as of everybody; whether the transaction
calls itself read-only or not. Castling's own sessions pass: they log in as Castling's user *and* say so.

Each guard has a number. It is lifted by a row with that number, at once and without any lock; only then
are the triggers taken away. A later guard has a greater number, so no old snapshot can take one for
lifted that is not: what a snapshot does not see refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

from castling.kinds.postgres.catalog import Table
from castling.kinds.postgres.connect import OWN_SESSION
from castling.kinds.postgres.neighbours import MAKE_ALONE
from castling.kinds.postgres.statements import quoted

__all__ = ["CREATE_GUARD", "DROP_DDL_GUARD", "MAKE_DDL_GUARD", "guard_name", "guard_table", "literal"]

#: refused as the server refuses a write in a read-only transaction, so that clients know what to do
_SQLSTATE = "25006"

#: repeatable
CREATE_GUARD = (
    MAKE_ALONE
    + f"""
    CREATE SCHEMA IF NOT EXISTS castling;
    CREATE TABLE IF NOT EXISTS castling.fence (
        stream text PRIMARY KEY,
        number bigint NOT NULL,
        epoch bigint NOT NULL,
        primary_node text NOT NULL,
        at timestamptz NOT NULL DEFAULT pg_catalog.now(),
        had_default text
    );
    CREATE TABLE IF NOT EXISTS castling.fence_lifted (
        stream text PRIMARY KEY,
        number bigint NOT NULL
    );
    CREATE OR REPLACE FUNCTION castling.refuse_write() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $castling$
    BEGIN
        IF EXISTS (SELECT FROM castling.fence_lifted
                    WHERE stream = TG_ARGV[0] AND number >= TG_ARGV[1]::bigint) THEN
            RETURN NULL;
        END IF;
        RAISE EXCEPTION USING ERRCODE = '{_SQLSTATE}',
            MESSAGE = format('%I.%I can not be written here: group %s is fenced in epoch %s',
                             TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[0], TG_ARGV[2]),
            HINT = format('its primary is %s', TG_ARGV[3]);
    END
    $castling$;
    CREATE OR REPLACE FUNCTION castling.refuse_schema_change() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $castling$
    DECLARE
        held record;
    BEGIN
        IF current_setting('{OWN_SESSION}', true) = 'on'
           AND session_user = (SELECT rolname FROM pg_roles r JOIN pg_proc p ON p.proowner = r.oid
                                WHERE p.oid = 'castling.refuse_schema_change'::regproc)
           OR TG_TAG IN ('REINDEX', 'REFRESH MATERIALIZED VIEW') THEN
            RETURN;
        END IF;
        SELECT stream, epoch, primary_node INTO held FROM castling.fence LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = '{_SQLSTATE}',
                MESSAGE = format('%s is refused here: group %s is fenced in epoch %s', TG_TAG, held.stream,
                                 held.epoch),
                HINT = format('its primary is %s', held.primary_node);
        END IF;
    END
    $castling$;
    REVOKE ALL ON castling.fence, castling.fence_lifted FROM PUBLIC;
"""
)

#: only a superuser can make event triggers
MAKE_DDL_GUARD = """
    DO $castling$ BEGIN
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger
                        WHERE evtname = 'castling_fence' AND evtenabled = 'A') THEN
            DROP EVENT TRIGGER IF EXISTS castling_fence;
            CREATE EVENT TRIGGER castling_fence ON ddl_command_start
                EXECUTE FUNCTION castling.refuse_schema_change();
            ALTER EVENT TRIGGER castling_fence ENABLE ALWAYS;
        END IF;
    END $castling$;
"""
DROP_DDL_GUARD = "DROP EVENT TRIGGER IF EXISTS castling_fence"


def literal(text: str) -> str:
    """`text` as a constant of SQL."""
    doubled = text.replace("'", "''")
    return f"'{doubled}'" if "\\" not in doubled else " E'" + doubled.replace("\\", "\\\\") + "'"


def guard_name(group: str) -> str:
    """What the group's guard is called on every table; before Castling's other triggers in their order."""
    return f"castling_fence_{group}"[:63]


def guard_table(table: Table, group: str, number: int, told: Sequence[str], user: str) -> str:
    """The statements that guard one table. `told`: epoch and primary, for the message; `user`:
    Castling's own, whose sessions pass."""
    trigger = quoted(guard_name(group))
    arguments = ", ".join(literal(each) for each in (group, str(number), *told))
    return (
        f"CREATE OR REPLACE TRIGGER {trigger} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table.sql}"
        f" FOR EACH STATEMENT WHEN (pg_catalog.current_setting('{OWN_SESSION}', true) IS DISTINCT FROM 'on'"
        f" OR session_user <> {literal(user)})"
        f" EXECUTE FUNCTION castling.refuse_write({arguments});"
        f" ALTER TABLE ONLY {table.sql} ENABLE ALWAYS TRIGGER {trigger};"
    )
