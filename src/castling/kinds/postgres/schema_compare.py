"""Compares the definitions of a group's source and target, and what stands around the two databases.

Looks only. What differs is told as findings, each with the statement that would mend the target, if any.
"""

from __future__ import annotations

import psycopg

from castling.config import DatabaseSettings
from castling.errors import CastlingError, SourceError, SourceUnreachable, TargetError, TargetUnreachable
from castling.kinds.base import Finding, Severity, Stream
from castling.kinds.postgres.connect import connect
from castling.kinds.postgres.definitions import Difference, Thing, differences, finding, judge_extensions
from castling.kinds.postgres.naming import Naming
from castling.kinds.postgres.outside_read import read_available_extensions, read_outside
from castling.kinds.postgres.schema_read import read_schema
from castling.kinds.postgres.statements import quoted

__all__ = ["code_of", "compare_schema", "read_differences"]


async def compare_schema(stream: Stream) -> list[Finding]:
    """How the target's definitions and surroundings differ from the source's; one OK finding if not."""
    found, same = await read_differences(stream)
    told = [finding(each, code=code_of(each)) for each in found]
    if not told:
        message = f"{same} definitions are the same on source and target"
        told = [Finding(Severity.OK, "schema", "schema-same", message)]
    return told


async def read_differences(stream: Stream) -> tuple[list[Difference], int]:
    """What differs, and how many definitions the source has."""
    source, target = (
        stream.settings.databases[stream.settings.primary],
        stream.settings.databases[stream.backup],
    )
    here, _, version = await _read(stream, source, target.dbname, SourceUnreachable, SourceError)
    there, available, other = await _read(stream, target, target.dbname, TargetUnreachable, TargetError)
    loose = version != other or bool(stream.settings.rename)
    found = judge_extensions(differences(here, there, loose=loose), available)
    return [each for each in found if not _made_for_a_table(each, Naming(stream.settings.rename))], len(here)


def _made_for_a_table(each: Difference, naming: Naming) -> bool:
    """Whether it is a schema of the target's alone (or its owner, or a right on it) into which tables are
    renamed, which the source need not have. Pure."""
    if each.source is not None or each.kind not in ("schema", "owner", "grant", "comment"):
        return False
    name = each.name.removeprefix("schema ").partition(" to ")[0]
    return name in {quoted(there[0]) for there in naming.tables.values()} | {
        there[0] for there in naming.tables.values()
    }


def code_of(difference: Difference) -> str:
    if difference.target is None:
        return "not-on-target"
    return "only-on-target" if difference.source is None else "differs"


async def _read(
    stream: Stream,
    database: DatabaseSettings,
    target_database: str,
    away: type[CastlingError],
    refused: type[CastlingError],
) -> tuple[list[Thing], dict[str, set[str]], int]:
    application = f"castling compare {stream.group}"
    connection = await connect(database, application_name=application, error=away)
    try:
        # one view of the catalogs for all questions
        await connection.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        is_target = database is stream.settings.databases[stream.backup]
        things = [thing async for thing in read_schema(connection, stream.settings, is_target=is_target)]
        things += await read_outside(connection, target_database=target_database)
        available = await read_available_extensions(connection)
        await connection.execute(b"COMMIT")
        return things, available, connection.info.server_version // 10000
    except psycopg.OperationalError as error:
        raise away(f"the connection broke while definitions were read: {error}") from error
    except psycopg.Error as error:
        raise refused(f"the definitions can't be read: {error.diag.message_primary or error}") from error
    finally:
        await connection.close()
