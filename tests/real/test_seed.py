"""The first copy: taken while the source is written, complete, begun again after any end, and discreet."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.real.pg_cast import BulkTo, Journal, Pair, captured, database_pair, until

from castling.config import DatabaseSettings, SeedSettings
from castling.errors import CastlingError, SeedFailed, TargetForeign, TargetNotEmpty, TargetUnreachable
from castling.kinds.base import BulkCall, Piece, SeedProgress, SeedTarget, Stream
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.seed_plan import Chunk, Finish, Schema, decode_request
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

_CREATE = SeedSettings(schema="create", chunk_rows=500)
_EXPECT = SeedSettings(schema="expect", chunk_rows=500)

_PLAIN = """
    CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL);
    INSERT INTO accounts SELECT i, 100 FROM generate_series(1, 5000) i;
    ANALYZE accounts;
"""

_RICH = """
    CREATE TYPE mood AS ENUM ('calm', 'so-so');
    CREATE TABLE customer (
        id bigint GENERATED ALWAYS AS IDENTITY (START 1000) PRIMARY KEY,
        name text COLLATE "C" NOT NULL CHECK (name <> ''),
        mood mood DEFAULT 'calm',
        shouted text GENERATED ALWAYS AS (upper(name)) STORED
    );
    CREATE TABLE invoice (
        id serial PRIMARY KEY,
        customer bigint NOT NULL REFERENCES customer ON DELETE CASCADE,
        number text UNIQUE,
        EXCLUDE (number WITH =)
    );
    CREATE INDEX invoice_customer ON invoice (customer DESC) INCLUDE (number) WHERE customer > 0;
    CREATE TABLE measured (at date PRIMARY KEY, v float8) PARTITION BY RANGE (at);
    CREATE TABLE measured_25 PARTITION OF measured FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
    CREATE TABLE measured_rest PARTITION OF measured DEFAULT;
    CREATE INDEX ON measured (v);
    CREATE VIEW rich AS SELECT name, count(*) FROM customer JOIN invoice ON customer.id = customer GROUP BY 1;
    CREATE TABLE keyless (v text);
    CREATE TABLE wide (id int PRIMARY KEY, long text, raw bytea, list int[], doc jsonb);
    ALTER TABLE wide ALTER long SET STORAGE EXTERNAL;
    CREATE TABLE empty (id int PRIMARY KEY);
    CREATE SEQUENCE lonely START 77;
    INSERT INTO customer (name) SELECT 'c' || i FROM generate_series(1, 300) i;
    INSERT INTO invoice (customer, number) SELECT 1000 + i % 300, 'n' || i FROM generate_series(0, 999) i;
    INSERT INTO measured SELECT date '2024-12-01' + i, i / 7.0 FROM generate_series(1, 600) i;
    INSERT INTO keyless SELECT NULLIF(i % 5, 0)::text FROM generate_series(1, 2000) i;
    INSERT INTO wide SELECT i, repeat(md5(i::text), 3000), decode(repeat(md5(i::text), 500), 'hex'),
                            ARRAY[i, NULL, -i], jsonb_build_object('k', repeat('v', i * 300))
                       FROM generate_series(1, 40) i;
    INSERT INTO wide VALUES (0, E'\\\\.', '\\x00ff', '{}', 'null'), (-1, '', NULL, NULL, '"\\u00e9"');
"""

_ODD = """
    CREATE SCHEMA "Ünïcode.dot";
    CREATE SCHEMA "Ünïcode";
    CREATE TABLE "Ünïcode.dot"."t" ("select" int PRIMARY KEY, "ein ""Wort"" hier" text);
    CREATE TABLE "Ünïcode"."dot.t" ("select" int PRIMARY KEY, "ein ""Wort"" hier" text);
    CREATE TABLE "таблица * [x]?" ("ключ" int PRIMARY KEY, "значение; --" text);
    CREATE TABLE "日本" ("$1" int PRIMARY KEY, "\\" text, "%s" text);
    CREATE TABLE "it's" (v text);
    INSERT INTO "Ünïcode.dot"."t" VALUES (1, 'a'), (2, NULL);
    INSERT INTO "Ünïcode"."dot.t" VALUES (1, 'b');
    INSERT INTO "таблица * [x]?" SELECT i, repeat('ж', i) FROM generate_series(1, 1500) i;
    INSERT INTO "日本" VALUES (1, E'\\t\\n\\\\', '木');
    INSERT INTO "it's" VALUES ('x'), ('x'), (NULL);
"""


@pytest.fixture
def pair(east: EmbeddedServer, west: EmbeddedServer, tmp_path: Path) -> Iterator[Pair]:
    with database_pair(east, west, tmp_path) as made:
        yield made


@contextlib.asynccontextmanager
async def ends(stream: Stream) -> AsyncIterator[tuple[Any, SeedTarget]]:
    seed, target = KIND.seed_source(stream), KIND.seed_target(stream)
    try:
        yield seed, target
    finally:
        await seed.close()
        await target.close()


async def seeded(stream: Stream) -> SeedProgress:
    async with ends(stream) as (seed, target):
        await seed.begin()
        await seed.run(BulkTo(target))
        assert isinstance(seed.progress, SeedProgress)
        return seed.progress


async def applied(stream: Stream, pair: Pair) -> None:
    """What the source has committed since the copy's point, through decoder and target."""
    journal = Journal()
    async with captured(stream, journal) as capture:
        await journal.read_until(capture, pair.end_of_log())
    target = KIND.target(stream)
    try:
        progress = await target.open()
        for commit, changes in journal.commits():
            if commit.offset > progress:
                await target.apply([Piece(changes, len(changes), commit, commit.offset)])
                await target.commit(commit)
    finally:
        await target.close()


def differences(pair: Pair) -> list[Any]:
    found = compare(pair.east.dsn(pair.name), pair.west.dsn(pair.name))
    assert found.tables > 0
    return found.differences


async def test_a_copy_anew_goes_over_partitions_and_keeps_what_was_added(pair: Pair) -> None:
    """Indexes of partitions go with those of their roots; an index that somebody made for reports stays."""
    pair.source(_RICH)
    pair.source(
        'ALTER TABLE measured ADD CONSTRAINT "the key " UNIQUE (at, v);'
        "CREATE TABLE remark (at date REFERENCES measured, PRIMARY KEY (at)); INSERT INTO remark"
        " SELECT at FROM measured LIMIT 10"
    )
    stream = pair.stream(seed=_CREATE)
    await seeded(stream)
    pair.target("CREATE INDEX for_reports ON measured (at, v); CREATE INDEX too ON customer (name)")
    await seeded(stream)
    assert differences(pair) == []
    indexes = "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2"
    added = ("for_reports", "_at_v_idx", " too ")
    there = [row for row in pair.target(indexes) if not any(name in row[1] for name in added)]
    assert there == pair.source(indexes)
    assert len(pair.target("SELECT FROM pg_indexes WHERE indexname IN ('for_reports', 'too')")) == 2
    keys = (
        "SELECT conname, conrelid::regclass::text, contype FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"
    )
    assert pair.target(keys) == pair.source(keys)


@pytest.mark.parametrize("seed", [_CREATE, _EXPECT])
async def test_production_is_never_emptied_for_a_copy_of_itself(pair: Pair, seed: SeedSettings) -> None:
    """By another name of the same server, and though the copy before says that the tables are ours."""
    pair.source(_PLAIN)
    if seed is _EXPECT:
        pair.target("CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)")
    stream = pair.stream(seed=seed)
    await seeded(stream)
    pair.source(
        "CREATE SCHEMA castling; CREATE TABLE castling.seed"
        " (stream text PRIMARY KEY, tables text[] NOT NULL, created boolean, finished_at timestamptz);"
        f"INSERT INTO castling.seed VALUES ('{stream.group}', ARRAY['public.accounts'], true, now())"
    )
    east = stream.settings.databases["east"]
    stream.settings.databases["west"] = msgspec.structs.replace(east, host="localhost")
    with pytest.raises(TargetForeign, match="the source itself"):
        await seeded(stream)
    assert pair.source("SELECT count(*) FROM accounts") == [(5000,)]


async def test_a_database_without_the_copy_is_not_applied_to(pair: Pair) -> None:
    pair.source(_PLAIN)
    stream = pair.stream(seed=_CREATE)
    await seeded(stream)
    target = KIND.target(stream)
    assert await target.open() > 0
    await target.close()
    pair.target("DELETE FROM castling.progress")  # as on a server that was never copied to
    target = KIND.target(stream)
    try:
        with pytest.raises(TargetForeign, match="does not hold the copy"):
            await target.open()
    finally:
        await target.close()


class Stopping(BulkTo):
    """A bulk channel that breaks off at a call: before it, in its body, or when it has been carried out."""

    def __init__(self, target: SeedTarget, kind: type, *, call: int, where: str) -> None:
        super().__init__(target)
        self._kind, self._left, self._where = kind, call, where

    async def open(self) -> BulkCall:
        call = await super().open()

        async def stopping(meta: bytes, body: AsyncIterator[bytes] | None) -> bytes:
            self._left -= isinstance(decode_request(meta), self._kind)
            if self._left > 0:
                return await call(meta, body)
            if self._where == "before":
                raise TargetUnreachable("cut by the test")
            answer = await call(meta, body if self._where == "after" or body is None else _cut(body))
            assert self._where == "after" or body is None
            del answer
            raise TargetUnreachable("cut by the test")

        return stopping


async def _cut(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for data in body:
        yield data[: len(data) // 2]
        raise TargetUnreachable("cut by the test")


# --- complete ---------------------------------------------------------------------------------


async def test_a_copy_under_writes_and_the_stream_after_it_meet_without_gap(pair: Pair) -> None:
    pair.source(_PLAIN)
    stream = pair.stream(seed=_CREATE)
    stopping = asyncio.Event()

    async def write() -> int:
        """Money moves, rows come and go, until the copy has ended."""
        rounds = 0
        while not stopping.is_set():
            rounds += 1
            await asyncio.to_thread(
                pair.source,
                f"UPDATE accounts SET balance = balance - 1 WHERE id % 97 = {rounds % 97};"
                f"INSERT INTO accounts VALUES ({10000 + rounds}, {rounds});"
                f"DELETE FROM accounts WHERE id = {rounds}",
            )
        return rounds

    async with ends(stream) as (seed, target):
        writing = asyncio.create_task(write())
        await until(lambda: bool(pair.source("SELECT 1 FROM accounts WHERE id = 10001")))
        await seed.begin()
        begun = pair.source("SELECT max(id) FROM accounts")[0][0]
        await until(lambda: pair.source("SELECT max(id) FROM accounts")[0][0] > begun)
        await seed.run(BulkTo(target))
        stopping.set()
        assert await writing > 1
    assert differences(pair), "the control: the copy alone is not what the source is by now"
    await applied(stream, pair)
    assert differences(pair) == []


def _shape(pair: Pair, *, source: bool) -> list[Any]:
    """What there is besides rows, as each server tells it."""
    ask = pair.source if source else pair.target
    return [
        ask("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexdef"),
        ask(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated"
            " FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2, 3"
        ),
        ask(
            "SELECT table_name, column_name, data_type, column_default, is_nullable, is_identity,"
            " identity_generation, identity_start, is_generated, generation_expression, collation_name"
            " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
        ),
        ask("SELECT sequencename, start_value, increment_by FROM pg_sequences ORDER BY 1"),
        ask("SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'"),
    ]


async def test_everything_the_tables_need_is_made_on_an_empty_target(pair: Pair) -> None:
    pair.source(_RICH)
    stream = pair.stream(seed=_CREATE)
    await seeded(stream)
    assert differences(pair) == []
    assert _shape(pair, source=False) == _shape(pair, source=True)
    pair.source("INSERT INTO customer (name) VALUES ('later'); DELETE FROM keyless WHERE v = '3'")
    await applied(stream, pair)
    assert differences(pair) == []
    pair.target("DROP INDEX invoice_customer")
    assert _shape(pair, source=False) != _shape(pair, source=True), "the control"


async def test_names_in_any_script_and_with_any_sign(pair: Pair) -> None:
    pair.source(_ODD)
    stream = pair.stream(seed=_CREATE)
    await seeded(stream)
    assert differences(pair) == []
    pair.source('UPDATE "таблица * [x]?" SET "значение; --" = \'neu\' WHERE "ключ" = 9')
    pair.source("""DELETE FROM "日本"; INSERT INTO "it's" VALUES ('y')""")
    await applied(stream, pair)
    assert differences(pair) == []


async def test_an_excluded_table_is_neither_made_nor_copied(pair: Pair) -> None:
    pair.source(_PLAIN + 'CREATE TABLE "accounts * x" (id int PRIMARY KEY); CREATE TABLE noise (v int)')
    await seeded(pair.stream(seed=_CREATE, exclude=["public.noise", "public.accounts ? x"]))
    assert pair.target("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 2200") == [
        ("accounts",)
    ]


async def test_progress_only_grows_and_ends_at_the_whole(pair: Pair) -> None:
    pair.source(_PLAIN)
    seen: list[tuple[int, int, int]] = []

    class Watching(BulkTo):
        async def open(self) -> BulkCall:
            call = await super().open()

            async def watched(meta: bytes, body: AsyncIterator[bytes] | None) -> bytes:
                seen.append((seed.progress.rows, seed.progress.bytes, seed.progress.tables_done))
                return await call(meta, body)

            return watched

    async with ends(pair.stream(seed=_CREATE)) as (seed, target):
        await seed.begin()
        await seed.run(Watching(target))
        end: SeedProgress = seed.progress
    seen.append((end.rows, end.bytes, end.tables_done))
    assert len(seen) > 8, "the table was cut into chunks"
    for figures in zip(*seen, strict=True):
        assert list(figures) == sorted(figures)
    assert (end.phase, end.eta_s) == ("done", 0.0)
    assert (end.rows, end.rows_total) == (5000, 5000)
    assert (end.tables_done, end.tables_total) == (1, 1)
    assert end.bytes > 5000


# --- refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [_CREATE, _EXPECT])
async def test_rows_of_somebody_else_are_never_touched(pair: Pair, seed: SeedSettings) -> None:
    pair.source(_PLAIN)
    pair.target("CREATE TABLE accounts (id int PRIMARY KEY, balance int); INSERT INTO accounts VALUES (1, 7)")
    with pytest.raises(TargetNotEmpty, match=r"public\.accounts"):
        await seeded(pair.stream(seed=seed))
    assert pair.target("SELECT * FROM accounts") == [(1, 7)]


async def test_an_empty_table_that_is_to_be_created_is_refused_and_taken_when_expected(pair: Pair) -> None:
    pair.source(_PLAIN)
    pair.target("CREATE TABLE accounts (balance int, id int PRIMARY KEY)")
    with pytest.raises(TargetNotEmpty, match="already has"):
        await seeded(pair.stream(seed=_CREATE))
    await seeded(pair.stream(seed=_EXPECT))
    assert differences(pair) == []


# --- begun again ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "call", "where"),
    [
        (Schema, 1, "before"),
        (Schema, 1, "in"),
        (Schema, 1, "after"),
        (Chunk, 1, "in"),
        (Chunk, 4, "in"),
        (Chunk, 4, "after"),
        (Finish, 1, "before"),
        (Finish, 1, "after"),
    ],
)
async def test_a_copy_that_broke_off_is_begun_again(pair: Pair, kind: type, call: int, where: str) -> None:
    pair.source(_PLAIN + "CREATE INDEX ON accounts (balance); ALTER TABLE accounts ADD CHECK (balance > -99)")
    stream = pair.stream(seed=_CREATE)
    async with ends(stream) as (seed, target):
        await seed.begin()
        with pytest.raises(TargetUnreachable, match="cut by the test"):
            await seed.run(Stopping(target, kind, call=call, where=where))
    pair.source("DELETE FROM accounts WHERE id <= 10")
    await seeded(stream)
    await applied(stream, pair)
    assert differences(pair) == []
    assert _shape(pair, source=False) == _shape(pair, source=True)


async def test_the_progress_of_a_copy_before_does_not_survive_the_next(pair: Pair) -> None:
    """Neither its progress nor what the new copy says may depend on what a crash of the target leaves."""
    pair.source(_PLAIN)
    stream = pair.stream(seed=_CREATE)
    await seeded(stream)
    pair.target("UPDATE castling.progress SET lsn = 'FFFF/0'")  # as if the source of before had been further
    pair.west.execute("CHECKPOINT")
    async with ends(stream) as (seed, target):
        await seed.begin()
        with pytest.raises(TargetUnreachable, match="cut by the test"):
            await seed.run(Stopping(target, Chunk, call=1, where="before"))
    pair.west.kill()
    pair.west.start_again()
    assert pair.target("SELECT * FROM castling.progress") == []
    await seeded(stream)
    pair.west.kill()  # at once: nothing has been written behind it
    pair.west.start_again()
    assert pair.target("SELECT finished_at IS NOT NULL FROM castling.seed") == [(True,)]
    assert pair.target("SELECT lsn < 'FFFF/0' FROM castling.progress") == [(True,)]
    await applied(stream, pair)
    assert differences(pair) == []


async def test_a_copy_cancelled_in_a_chunk_leaves_nothing_in_the_way(pair: Pair) -> None:
    """As when its process is stopped; what it held on either server goes with its connections."""
    pair.source(_PLAIN)
    stream = pair.stream(seed=_CREATE)
    reached = asyncio.Event()

    class Stuck(BulkTo):
        async def open(self) -> BulkCall:
            call = await super().open()

            async def stuck(meta: bytes, body: AsyncIterator[bytes] | None) -> bytes:
                halted = body is not None and isinstance(decode_request(meta), Chunk)
                return await call(meta, self._body(body) if halted and body is not None else body)

            return stuck

        async def _body(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            async for data in body:
                yield data
                reached.set()
                await asyncio.Event().wait()

    async with ends(stream) as (seed, target):
        await seed.begin()
        copying = asyncio.create_task(seed.run(Stuck(target)))
        async with asyncio.timeout(60):
            await reached.wait()
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
    await seeded(stream)
    assert differences(pair) == []


async def test_a_second_copy_follows_the_tables_of_the_group(pair: Pair) -> None:
    pair.source(_PLAIN + "CREATE TABLE old (id int PRIMARY KEY); CREATE TABLE stays (id int PRIMARY KEY)")
    stream = pair.stream(seed=_CREATE)
    await seeded(stream)
    pair.source("DROP TABLE old; CREATE TABLE new (id int PRIMARY KEY); INSERT INTO new VALUES (1)")
    pair.target("DROP TABLE old")
    with pytest.raises(TargetNotEmpty, match=r"but not public\.new$"):
        await seeded(stream)
    pair.target("CREATE TABLE public.new (id int PRIMARY KEY)")
    with pytest.raises(TargetNotEmpty, match=r"already has public\.new"):
        await seeded(stream)
    await seeded(pair.stream(seed=_EXPECT))
    assert differences(pair) == []


# --- discreet ---------------------------------------------------------------------------------


def _tools(folder: Path, real: Path, script: str) -> str:
    """A folder with PostgreSQL's programs, each of which first does what `script` says."""
    folder.mkdir()
    for name in ("pg_dump", "pg_restore"):
        program = folder / name
        program.write_text(
            f'#!/bin/sh\nif [ "$1" != --version ]; then\n{script}\nfi\nexec \'{real / name}\' "$@"\n'
        )
        program.chmod(0o755)
    return str(folder)


async def test_no_password_where_others_can_read_it(pair: Pair, tmp_path: Path) -> None:
    pair.source(_PLAIN)
    seen = tmp_path / "seen"
    look = f"{{ cat /proc/[0-9]*/cmdline; env; stat -c 'mode %a' \"$PGPASSFILE\"; }} >> '{seen}' 2>/dev/null"
    tools = _tools(tmp_path / "bin", pair.east.bin, look)
    await seeded(pair.stream(seed=_CREATE, postgres_bin=tools))
    everything = seen.read_bytes()
    assert b"--schema-only" in everything and b"--section=post-data" in everything
    assert everything.count(b"mode 600") == 6, "pg_dump; pg_restore to list and restore each section"
    assert EmbeddedServer.PASSWORD.encode() not in everything
    careless = subprocess.Popen(["sh", "-c", "read _", EmbeddedServer.PASSWORD], stdin=subprocess.PIPE)
    try:
        await seeded(pair.stream(seed=_CREATE, postgres_bin=tools))
        assert EmbeddedServer.PASSWORD.encode() in seen.read_bytes(), "the control: one would be seen"
    finally:
        careless.communicate()


async def test_no_password_in_what_a_failing_tool_says(pair: Pair, tmp_path: Path) -> None:
    pair.source(_PLAIN)
    tools = _tools(tmp_path / "bin", pair.east.bin, 'cat "$PGPASSFILE" >&2; exit 1')
    with pytest.raises(SeedFailed, match=r"pg_dump failed: .*\*\*\*") as failed:
        await seeded(pair.stream(seed=_CREATE, postgres_bin=tools))
    assert EmbeddedServer.PASSWORD not in f"{failed.value!r} {failed.value.as_json()}"


@pytest.mark.parametrize("end", ["east", "west"])
async def test_a_wrong_password_is_told_without_it(pair: Pair, tmp_path: Path, end: str) -> None:
    pair.source(_PLAIN)
    stream = pair.stream(seed=_CREATE)
    wrong = tmp_path / "wrong"
    wrong.write_text("Wr0ng-and-secret\n")
    right = stream.settings.databases[end]
    fields = {name: getattr(right, name) for name in right.__struct_fields__}
    stream.settings.databases[end] = DatabaseSettings(**{**fields, "password_file": str(wrong)})
    with pytest.raises(CastlingError, match="password authentication failed") as failed:
        await seeded(stream)
    assert "Wr0ng" not in f"{failed.value!r} {failed.value.as_json()} {failed.value.__cause__!r}"
