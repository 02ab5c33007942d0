"""The target's side of large objects: makes, fills and removes them as the messages of the stream say.

Which of them are ours stands in `castling.large_objects`, with the content that each has; only these are ever
emptied or removed. One that somebody else made under the same number is adopted when it has the same
content; else it is left alone and listed as a warning, as is an owner or a role that the target lacks.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection, sql

from castling.errors import DecodeError
from castling.kinds.postgres.large_objects import CONTENT, GRANTS, All, Grant, Piece, State, decode_large
from castling.kinds.postgres.neighbours import MAKE_ALONE

__all__ = ["CREATE_LARGE_OBJECTS", "LargeObjectTarget"]

CREATE_LARGE_OBJECTS = (
    MAKE_ALONE
    + """
    CREATE TABLE IF NOT EXISTS castling.large_objects (
        stream text NOT NULL,
        number oid NOT NULL,
        content bytea NOT NULL,
        told_at timestamptz NOT NULL,
        problem text,
        PRIMARY KEY (stream, number)
    );
    CREATE TABLE IF NOT EXISTS castling.large_objects_told (
        stream text PRIMARY KEY,
        told_at timestamptz NOT NULL
    );
"""
)

#: opened for writing
_INV_WRITE = 0x20000
_AT = "pg_catalog.to_timestamp(0) + pg_catalog.make_interval(secs => 0.000001) * %(us)s::float8"

_KNOWN = """
SELECT b.content, EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata m WHERE m.oid = %(oid)s)
  FROM (SELECT) one
  LEFT JOIN castling.large_objects b ON b.stream = %(stream)s AND b.number = %(oid)s
"""


class LargeObjectTarget:
    """Handles messages of large objects on the connection that applies."""

    def __init__(self, group: str) -> None:
        self._group = group
        #: the object whose pieces come now, and whether they are written
        self._current: int | None = None
        self._writing = False
        self._told_ns: int | None = None
        self._problems: dict[int, str] = {}

    async def load(self, connection: AsyncConnection[Any]) -> None:
        """What was said before this session, for the report."""
        await connection.execute(CREATE_LARGE_OBJECTS.encode())
        cursor = await connection.execute(
            "SELECT number::int8, problem FROM castling.large_objects"
            " WHERE stream = %s AND problem IS NOT NULL",
            (self._group,),
        )
        self._problems = dict(await cursor.fetchall())
        cursor = await connection.execute(
            "SELECT (EXTRACT(epoch FROM told_at) * 1000000000)::int8 FROM castling.large_objects_told"
            " WHERE stream = %s",
            (self._group,),
        )
        row = await cursor.fetchone()
        self._told_ns = int(row[0]) if row else None

    async def take(self, connection: AsyncConnection[Any], content: bytes) -> None:
        """Do what a message says, in the open transaction. DecodeError when it can't be read."""
        message = decode_large(content)
        if message.group != self._group:
            return
        if isinstance(message, Piece):
            await self._write(connection, message)
            return
        if isinstance(message, State):
            await self._begin(connection, message)
        else:
            await self._keep_only(connection, message)
        await connection.execute(
            f"INSERT INTO castling.large_objects_told VALUES (%(stream)s, {_AT})"
            " ON CONFLICT (stream) DO UPDATE SET told_at = excluded.told_at".encode(),
            {"stream": self._group, "us": message.at_ns // 1000},
        )
        self._told_ns = message.at_ns

    async def _begin(self, connection: AsyncConnection[Any], state: State) -> None:
        cursor = await connection.execute(_KNOWN.encode(), {"stream": self._group, "oid": state.oid})
        row = await cursor.fetchone()
        assert row is not None
        known, exists = row
        if exists and known is None:
            known = await self._content(connection, state.oid)
            if known != state.content:
                self._current, self._writing = state.oid, False
                self._problems[state.oid] = "is on the target with other content, not Castling's"
                return
        self._current, self._writing = state.oid, not exists or known != state.content
        if not exists:
            await connection.execute("SELECT pg_catalog.lo_create(%s::oid)", (state.oid,))
        elif self._writing:
            await connection.execute(
                "SELECT pg_catalog.lo_truncate64(pg_catalog.lo_open(%s::oid, %s), 0)",
                (state.oid, _INV_WRITE),
            )
        problem_ = await self._describe(connection, state)
        await self._remember(connection, state, state.content, problem_)

    async def _content(self, connection: AsyncConnection[Any], oid: int) -> bytes:
        cursor = await connection.execute(CONTENT.format(where="WHERE loid = %s").encode(), (oid,))
        row = await cursor.fetchone()
        return bytes(row[1]) if row else b""

    async def _describe(self, connection: AsyncConnection[Any], state: State) -> str | None:
        """Owner, rights and comment; what the target lacks for that, or None."""
        wanted = {state.owner, *(grant.role for grant in state.grants)} - {""}
        cursor = await connection.execute(
            "SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = ANY(%s)", (list(wanted),)
        )
        roles = {row[0] for row in await cursor.fetchall()}
        number = sql.Literal(state.oid)
        if state.owner in roles:
            statement = sql.SQL("ALTER LARGE OBJECT {} OWNER TO {}")
            await connection.execute(statement.format(number, sql.Identifier(state.owner)))
        await self._grant(connection, state, roles)
        statement = sql.SQL("COMMENT ON LARGE OBJECT {} IS {}")
        await connection.execute(statement.format(number, sql.Literal(state.comment)))
        lacking = sorted(wanted - roles)
        return f"needs the role {', '.join(lacking)} on the target" if lacking else None

    async def _grant(self, connection: AsyncConnection[Any], state: State, roles: set[str]) -> None:
        cursor = await connection.execute(GRANTS.encode(), (state.oid,))
        there = {Grant(*row) for row in await cursor.fetchall()}
        wanted = {grant for grant in state.grants if not grant.role or grant.role in roles}
        if there == wanted:
            return
        number = sql.Literal(state.oid)
        for role in {grant.role for grant in there}:
            statement = sql.SQL("REVOKE ALL ON LARGE OBJECT {} FROM {} CASCADE")
            await connection.execute(statement.format(number, _grantee(role)))
        for grant in sorted(wanted, key=lambda each: (each.role != state.owner, each.role, each.privilege)):
            may_grant = sql.SQL(" WITH GRANT OPTION" if grant.grantable else "")
            statement = sql.SQL("GRANT {} ON LARGE OBJECT {} TO {}{}")
            privilege = sql.SQL("SELECT" if grant.privilege == "SELECT" else "UPDATE")
            await connection.execute(statement.format(privilege, number, _grantee(grant.role), may_grant))

    async def _remember(
        self, connection: AsyncConnection[Any], state: State, content: bytes, problem: str | None
    ) -> None:
        await connection.execute(
            f"INSERT INTO castling.large_objects "
            f"VALUES (%(stream)s, %(oid)s, %(content)s, {_AT}, %(problem)s)"
            " ON CONFLICT (stream, number) DO UPDATE SET content = excluded.content,"
            " told_at = excluded.told_at, problem = excluded.problem".encode(),
            {
                "stream": self._group,
                "oid": state.oid,
                "content": content,
                "us": state.at_ns // 1000,
                "problem": problem,
            },
        )
        self._problems.pop(state.oid, None)
        if problem is not None:
            self._problems[state.oid] = problem

    async def _write(self, connection: AsyncConnection[Any], piece: Piece) -> None:
        if piece.oid != self._current:
            raise DecodeError(f"a piece of large object {piece.oid} came without its beginning")
        if self._writing:
            await connection.execute(
                "SELECT pg_catalog.lo_put(%s::oid, %s, %b)", (piece.oid, piece.offset, piece.data)
            )

    async def _keep_only(self, connection: AsyncConnection[Any], message: All) -> None:
        """Remove those of ours that the source no longer has."""
        cursor = await connection.execute(
            "DELETE FROM castling.large_objects b WHERE stream = %s"
            " AND number::int8 BETWEEN %s AND %s AND number::int8 <> ALL(%s::int8[]) RETURNING number::int8",
            (self._group, message.first, message.last, message.oids),
        )
        gone = [row[0] for row in await cursor.fetchall()]
        await connection.execute(
            "SELECT pg_catalog.lo_unlink(m.oid) FROM pg_catalog.pg_largeobject_metadata m"
            " WHERE m.oid::int8 = ANY(%s::int8[])"
            # another stream into this database may have made the same object its own
            " AND NOT EXISTS (SELECT FROM castling.large_objects b WHERE b.number = m.oid)",
            (gone,),
        )
        kept = set(message.oids)
        for oid in list(self._problems):
            if message.first <= oid <= message.last and oid not in kept:
                del self._problems[oid]

    def warnings(self) -> list[dict[str, Any]]:
        if not self._problems:
            return []
        told = [f"{oid} {problem}" for oid, problem in sorted(self._problems.items())]
        return [
            {
                "code": "large-objects-not-carried",
                "message": f"{len(told)} large objects are not as on the source: {', '.join(told[:5])}"
                + (", …" if len(told) > 5 else ""),
                "hint": "make the roles; remove the target's own objects if nobody needs them; then"
                " stop and start the group",
            }
        ]

    def report(self) -> dict[str, Any]:
        """`applied_ns`: when the source was asked for what was applied last."""
        return {"applied_ns": self._told_ns, "problems": len(self._problems)}


def _grantee(role: str) -> sql.Composable:
    return sql.Identifier(role) if role else sql.SQL("PUBLIC")
