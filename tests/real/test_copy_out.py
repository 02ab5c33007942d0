"""A COPY read past libpq gives the bytes that libpq gives, and leaves its connection usable, or fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg
import pytest
from tests.real.pg_cast import Pair, database_pair

from castling.kinds.postgres import copy_out
from castling.kinds.postgres.source_view import open_view
from castling.testing.servers import EmbeddedServer

_MIXED = """
    CREATE TABLE mixed AS
        SELECT i, repeat('x', i % 700) AS v, NULL::text AS w FROM generate_series(1, 20000) i;
    INSERT INTO mixed SELECT 0, repeat('y', 3000000), 'a long one' FROM generate_series(1, 2);
"""


def test_rows_and_errors(east: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with database_pair(east, east, tmp_path) as pair:
        pair.source(_MIXED)
        asyncio.run(_same_bytes(pair, monkeypatch))
        asyncio.run(_errors(pair))


async def _read(pair: Pair, statement: str) -> bytes:
    async with open_view("castling test", pair.database(pair.east)) as view, view.session() as reader:
        async with view.seen(reader):
            blocks = [block async for block in copy_out.read_blocks(reader, statement)]
        cursor = await reader.execute("SELECT 7")
        assert await cursor.fetchone() == (7,), "libpq goes on where it was"
        return b"".join(blocks)


async def _same_bytes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for form in ("text", "binary"):
        statement = f"COPY (SELECT * FROM public.mixed) TO STDOUT (FORMAT {form})"
        past = await _read(pair, statement)
        with monkeypatch.context() as patched:
            patched.setattr(copy_out, "PAST_LIBPQ", False)
            assert past == await _read(pair, statement)
        assert len(past) > 6_000_000
    assert await _read(pair, "COPY (SELECT FROM public.mixed LIMIT 0) TO STDOUT") == b""


async def _errors(pair: Pair) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable, match="nowhere"):
        await _read(pair, "COPY nowhere TO STDOUT")
    with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero"):
        await _read(pair, "COPY (SELECT 1 / (i - 9000) FROM generate_series(1, 20000) i) TO STDOUT")
    with pytest.raises(psycopg.OperationalError):
        await _read(pair, "COPY (SELECT pg_terminate_backend(pg_backend_pid())) TO STDOUT")
