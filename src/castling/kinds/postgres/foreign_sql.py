"""What the target is given to notice writes that are not Castling's: triggers, and tables for their notes.

A trigger on each table fires once for a statement, before it, and only in sessions of others; in
Castling's own the server evaluates one condition a statement and nothing for a row. Transition tables
would count rows more simply, but the server fills them whether their trigger fires or not, and so
the apply would pay for every row.

The first statement of a transaction on a table makes a note: who, when, and the session's counters of the
table as they stand. A deferred trigger on the notes, at the commit, looks at the counters again: the
difference is what was written, and a note of nothing is taken away. Where somebody makes all constraints
immediate, a note stays without numbers: unknown, never unnoticed. Rows of a savepoint that was rolled back
are counted too.

Everything is ENABLE ALWAYS: a session that makes itself a replication replica is noticed like any other.
"""

from __future__ import annotations

from castling.kinds.postgres.connect import OWN_SESSION
from castling.kinds.postgres.neighbours import MAKE_ALONE
from castling.kinds.postgres.statements import quoted

__all__ = ["CREATE_NOTES", "DROP_EVENT_TRIGGERS", "KEPT", "TRIGGER", "watch_table"]

#: what the trigger is called on every table
TRIGGER = "castling_watch"
#: notes kept; older ones make room, by whoever writes the next and by the look of the apply end
KEPT = 10_000

_TABLES = """
    CREATE SCHEMA IF NOT EXISTS castling;
    CREATE TABLE IF NOT EXISTS castling.watched (
        relation oid PRIMARY KEY,
        stream text NOT NULL,
        schema text NOT NULL,
        name text NOT NULL
    );
    CREATE TABLE IF NOT EXISTS castling.foreign_writes (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        stream text NOT NULL,
        part text NOT NULL,
        operation text NOT NULL,
        at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
        login text,
        role text,
        application text,
        client text,
        pid int,
        inserted bigint,
        updated bigint,
        deleted bigint,
        acknowledged_at timestamptz,
        acknowledged_by text,
        xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(),
        relation oid NOT NULL,
        base bigint[],
        counted boolean NOT NULL DEFAULT false
    );
    CREATE TABLE IF NOT EXISTS castling.watch_off (stream text PRIMARY KEY);
    CREATE INDEX IF NOT EXISTS foreign_writes_open ON castling.foreign_writes (xid, relation);
"""

#: rows that this session has written into a table and those below it, since a moment before this transaction
_ROWS_WRITTEN = """
    CREATE OR REPLACE FUNCTION castling.rows_written(of_table oid) RETURNS bigint[]
    LANGUAGE plpgsql SET search_path = pg_catalog AS $castling$
    BEGIN
        IF current_setting('track_counts') = 'off' THEN
            RETURN NULL;
        END IF;
        RETURN (
            WITH RECURSIVE below (relation) AS (
                SELECT of_table
                UNION
                SELECT i.inhrelid FROM pg_inherits i JOIN below ON i.inhparent = below.relation
            )
            SELECT ARRAY[sum(pg_stat_get_xact_tuples_inserted(relation)),
                         sum(pg_stat_get_xact_tuples_updated(relation)),
                         sum(pg_stat_get_xact_tuples_deleted(relation))]::bigint[]
              FROM below);
    END
    $castling$;
"""

_NOTE_WRITE = f"""
    CREATE OR REPLACE FUNCTION castling.note_write() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $castling$
    DECLARE
        made bigint;
    BEGIN
        IF to_regclass('castling.foreign_writes') IS NULL
           OR EXISTS (SELECT FROM castling.watch_off WHERE stream = TG_ARGV[0]) OR EXISTS (
            SELECT FROM castling.foreign_writes w
             WHERE w.xid = pg_current_xact_id() AND w.relation = TG_RELID
               AND CASE WHEN TG_OP = 'TRUNCATE' THEN w.operation = 'TRUNCATE'
                        ELSE w.operation IN ('INSERT', 'UPDATE', 'DELETE') AND NOT w.counted END
        ) THEN
            RETURN NULL;
        END IF;
        INSERT INTO castling.foreign_writes
               (stream, part, operation, login, role, application, client, pid, relation, base, counted)
        VALUES (TG_ARGV[0], TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME, TG_OP, session_user,
                NULLIF(current_setting('role'), 'none'), current_setting('application_name'),
                host(inet_client_addr()), pg_backend_pid(), TG_RELID, castling.rows_written(TG_RELID),
                TG_OP = 'TRUNCATE')
        RETURNING number INTO made;
        -- elsewhere than in read committed a row that is gone meanwhile would be an error of the writer's
        IF current_setting('transaction_isolation') = 'read committed' THEN
            DELETE FROM castling.foreign_writes WHERE number IN (
                SELECT number FROM castling.foreign_writes WHERE number <= made - {KEPT}
                 ORDER BY number LIMIT 2 FOR UPDATE SKIP LOCKED);
        END IF;
        RETURN NULL;
    END
    $castling$;
"""

#: at the commit; deeper than 1 it runs inside the statement that made the note, before anything was written
_COUNT_WRITE = """
    CREATE OR REPLACE FUNCTION castling.count_write() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $castling$
    DECLARE
        now_at bigint[];
    BEGIN
        IF NEW.counted OR pg_trigger_depth() > 1 THEN
            RETURN NULL;
        END IF;
        now_at := castling.rows_written(NEW.relation);
        IF now_at = NEW.base THEN
            DELETE FROM castling.foreign_writes WHERE number = NEW.number;
        ELSE
            UPDATE castling.foreign_writes
               SET counted = true, inserted = now_at[1] - NEW.base[1], updated = now_at[2] - NEW.base[2],
                   deleted = now_at[3] - NEW.base[3]
             WHERE number = NEW.number;
        END IF;
        RETURN NULL;
    END
    $castling$;
    DO $castling$ BEGIN
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger
                        WHERE tgrelid = 'castling.foreign_writes'::pg_catalog.regclass
                          AND tgname = 'count_write') THEN
            CREATE CONSTRAINT TRIGGER count_write AFTER INSERT ON castling.foreign_writes
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION castling.count_write();
            ALTER TABLE castling.foreign_writes ENABLE ALWAYS TRIGGER count_write;
        END IF;
    END $castling$;
"""

#: of a table that is dropped, and of its trigger, only the list of dropped objects still knows
_NOTE_DDL = f"""
    CREATE OR REPLACE FUNCTION castling.note_ddl() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $castling$
    DECLARE
        concerned oid[];
    BEGIN
        IF current_setting('{OWN_SESSION}', true) = 'on' OR to_regclass('castling.watched') IS NULL
           OR to_regclass('castling.foreign_writes') IS NULL THEN
            RETURN;
        END IF;
        IF TG_EVENT = 'sql_drop' THEN
            concerned := ARRAY(
                SELECT w.relation FROM castling.watched w JOIN pg_event_trigger_dropped_objects() d
                    ON d.classid = 'pg_class'::regclass AND d.objid = w.relation AND d.objsubid = 0
                    OR d.classid = 'pg_trigger'::regclass AND d.address_names[1:2] = ARRAY[w.schema, w.name]);
        ELSE
            concerned := ARRAY(
                SELECT CASE d.classid
                       WHEN 'pg_class'::regclass
                           THEN COALESCE((SELECT indrelid FROM pg_index WHERE indexrelid = d.objid), d.objid)
                       WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid = d.objid)
                       WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid = d.objid)
                       WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid = d.objid)
                       END
                  FROM pg_event_trigger_ddl_commands() d);
        END IF;
        INSERT INTO castling.foreign_writes
               (stream, part, operation, login, role, application, client, pid, relation, counted)
        SELECT w.stream, w.schema || '.' || w.name, TG_TAG, session_user,
               NULLIF(current_setting('role'), 'none'), current_setting('application_name'),
               host(inet_client_addr()), pg_backend_pid(), w.relation, true
          FROM castling.watched w
         WHERE w.relation = ANY (concerned)
           AND NOT EXISTS (SELECT FROM castling.watch_off o WHERE o.stream = w.stream)
           AND NOT EXISTS (SELECT FROM castling.foreign_writes f
                            WHERE f.xid = pg_current_xact_id() AND f.relation = w.relation
                              AND f.operation = TG_TAG);
    END
    $castling$;
    DO $castling$ BEGIN
        IF (SELECT count(*) < 2 FROM pg_catalog.pg_event_trigger
             WHERE evtname IN ('castling_watch_ddl', 'castling_watch_drop') AND evtenabled = 'A') THEN
            DROP EVENT TRIGGER IF EXISTS castling_watch_ddl;
            DROP EVENT TRIGGER IF EXISTS castling_watch_drop;
            CREATE EVENT TRIGGER castling_watch_ddl ON ddl_command_end EXECUTE FUNCTION castling.note_ddl();
            CREATE EVENT TRIGGER castling_watch_drop ON sql_drop EXECUTE FUNCTION castling.note_ddl();
            ALTER EVENT TRIGGER castling_watch_ddl ENABLE ALWAYS;
            ALTER EVENT TRIGGER castling_watch_drop ENABLE ALWAYS;
        END IF;
    END $castling$;
"""

#: repeatable; the statements of one transaction
CREATE_NOTES = MAKE_ALONE + _TABLES + _ROWS_WRITTEN + _NOTE_WRITE + _COUNT_WRITE + _NOTE_DDL

DROP_EVENT_TRIGGERS = """
    DROP EVENT TRIGGER IF EXISTS castling_watch_ddl;
    DROP EVENT TRIGGER IF EXISTS castling_watch_drop;
"""


def watch_table(schema: str, name: str, stream: str) -> str:
    """The statements that put the trigger on a table, or put it right."""
    table = f"{quoted(schema)}.{quoted(name)}"
    group = stream.replace("'", "''")
    return (
        f"CREATE OR REPLACE TRIGGER {TRIGGER} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}"
        f" FOR EACH STATEMENT"
        f" WHEN (pg_catalog.current_setting('{OWN_SESSION}', true) IS DISTINCT FROM 'on')"
        f" EXECUTE FUNCTION castling.note_write('{group}');"
        f" ALTER TABLE ONLY {table} ENABLE ALWAYS TRIGGER {TRIGGER}"
    )
