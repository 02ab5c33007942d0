"""Apply alone: backlogs that are hardened in a journal beside the target, applied to a fresh copy of it.

    make bench-apply ARGS="--rounds 3 --scale 4 --native"

The journals are made once, by the real capture, one for each kind of work; then each is applied by the
real apply session in a process of its own, to a copy of what the source was before. Told are the wall
time, and the processor seconds of that process and of its sessions on the target's server: on a shared
machine the latter are what counts. After each round the copy is compared with the source. `--native`
beside it: the same backlogs caught up with by PostgreSQL's own subscription, whose processor seconds are
those of its walsender and of its apply workers. `--folder` keeps the backlogs, so that two builds can be
measured on the same ones.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psycopg
from segments import SCHEMA, SEGMENTS, fill
from sides import cores, wait_for_sentinel

from castling.apply.schedule import Limits
from castling.apply.session import ApplySession, Figures
from castling.config import Config, DatabaseSettings, GroupSettings, InstallationSettings, NodeSettings
from castling.host import RealHost
from castling.journal.journal import Journal
from castling.journal.marks import Marks
from castling.journal.reader import JournalReader
from castling.journal.record import Position, Tail
from castling.journal.segment import encode
from castling.kinds.base import Stream
from castling.kinds.postgres import progress
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.seed_target import CREATE_STATE
from castling.testing.compare import compare
from castling.testing.servers import EmbeddedServer

#: what both are copied from, our copy, and native's
BASE, COPY, NATIVE = "bank", "copy", "native"
#: the publication, and the slot from which each round's is copied
NATIVE_NAME = "native_bench"
GROUP = "bench"
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Backlog:
    """One kind of work as a journal. `number`: the sentinel's, by which its end is found on a target."""

    segment: str
    number: int
    transactions: int
    changes: int
    journal: str


@dataclass
class Taken:
    """What applying one backlog took, seconds: by the clock, of our process, of the target's sessions."""

    wall_s: float
    apply_s: float
    target_s: float
    peak_mib: int = 0


def stream_of(folder: Path, east: EmbeddedServer, west: EmbeddedServer, **settings: int) -> Stream:
    password = folder / "password"
    password.write_text(EmbeddedServer.PASSWORD + "\n")
    databases = {
        name: DatabaseSettings(
            host="127.0.0.1",
            port=server.port,
            dbname=dbname,
            user=server.USER,
            password_file=str(password),
        )
        for name, server, dbname in (("east", east, BASE), ("west", west, COPY))
    }
    group = GroupSettings(
        kind="postgres",
        primary="east",
        backups=["west"],
        databases=databases,
        on_error="stop",
        **settings,  # type: ignore[arg-type]
    )
    node = NodeSettings(api="127.0.0.1:1", link="127.0.0.1:2")
    config = Config(
        installation=InstallationSettings(name="bench"),
        nodes={"east": node, "west": node},
        groups={GROUP: group},
    )
    return Stream(GROUP, "west", group, config)


# --- making the backlogs ----------------------------------------------------------------------


def prepare(folder: Path, chosen: argparse.Namespace, east: EmbeddedServer, west: EmbeddedServer) -> None:
    for server in (east, west):
        server.execute(f"CREATE DATABASE {BASE}")
        with psycopg.connect(server.dsn(BASE), autocommit=True) as connection:
            connection.execute(SCHEMA.encode())
            fill(connection, max(1, int(10 * chosen.scale)))
            connection.execute("VACUUM ANALYZE")
    stream = stream_of(folder, east, west)
    asyncio.run(_begin(stream))
    east.execute(f"CREATE PUBLICATION {NATIVE_NAME} FOR TABLES IN SCHEMA public", BASE)
    east.execute(f"SELECT pg_create_logical_replication_slot('{NATIVE_NAME}', 'pgoutput')", BASE)
    tail = Tail()
    made: list[Backlog] = []
    for number, segment in enumerate(SEGMENTS, 1):
        transactions, changes = segment.write(east, BASE, 1, chosen.scale)
        east.execute(f"INSERT INTO sentinel VALUES ({number}, '{segment.name}')", BASE)
        journal = folder / "journals" / segment.name
        before, tail = tail, asyncio.run(_capture(stream, journal, tail, east))
        if not before.offset:
            asyncio.run(_begin_target(west, journal))
        made.append(Backlog(segment.name, number, transactions, changes, str(journal)))
    (folder / "ready.json").write_text(
        json.dumps({"scale": chosen.scale, "backlogs": [asdict(each) for each in made]})
    )


async def _begin(stream: Stream) -> None:
    seed = KIND.seed_source(stream)
    await seed.begin()
    await seed.close()


async def _capture(stream: Stream, folder: Path, tail: Tail, east: EmbeddedServer) -> Tail:
    """Everything that is committed now, as a journal of its own that begins where `tail` ends."""
    end = int(str(east.execute("SELECT (pg_current_wal_flush_lsn() - '0/0')::int8")[0][0]))
    journal = Journal.open(
        RealHost(), str(folder), group=GROUP, segment_bytes=stream.settings.retention.segment
    )
    journal.raise_epoch(1)
    capture = KIND.capture(stream)
    guarding = asyncio.create_task(capture.guard())
    try:
        await capture.open(resume=tail.offset, session=tail.session)
        while journal.tail.offset < end:
            run, seq = b"", journal.tail.position.seq
            for draft in await capture.read():
                seq += 1
                run += encode(draft, Position(1, seq), max(time.time_ns(), journal.tail.t_ns))
            journal.append(run)
        found = await journal.harden()
        await capture.acknowledge(found.offset)
        return found
    finally:
        guarding.cancel()
        await asyncio.wait((guarding,))
        await capture.close()
        journal.close()


async def _begin_target(west: EmbeddedServer, journal: Path) -> None:
    """The target's progress is where the stream begins."""
    reader = JournalReader(RealHost(), str(journal))
    reader.seek(Position(1, 1))
    begins = reader.read(1)[0].offset
    reader.close()
    async with await psycopg.AsyncConnection.connect(west.dsn(BASE), autocommit=True) as connection:
        await connection.execute((CREATE_STATE + progress.CREATE_PROGRESS).encode())
        await progress.write(connection, GROUP, begins, None)


# --- applying one: in a process of its own ----------------------------------------------------


def apply_one(folder: Path, journal: str, ports: Sequence[int], settings: dict[str, int]) -> Taken:
    # as groups.worker does
    gc.freeze()
    gc.set_threshold(500_000, 20, 100)
    east, west = (
        EmbeddedServer(folder / name, port=port) for name, port in zip(_SERVERS, ports, strict=True)
    )
    return asyncio.run(_apply(stream_of(folder, east, west, **settings), journal, west))


async def _apply(stream: Stream, journal: str, west: EmbeddedServer) -> Taken:
    host = RealHost()
    reader = JournalReader(host, journal)
    hardened = reader.hardened()
    assert hardened is not None
    settings = stream.settings
    target = KIND.target(stream)
    session = ApplySession(
        host,
        reader,
        KIND.decoder(stream),
        target,
        Marks(host, journal),
        hardened=host.bell(f"{journal}/a.bell"),
        applied=host.bell(f"{journal}/r.bell"),
        limits=Limits(settings.batch_changes, settings.apply_memory // 2),
        memory=settings.apply_memory // 2,
        hold_bytes=settings.retention.hold,
        figures=Figures(),
    )
    began, used = time.perf_counter(), time.process_time()
    running = asyncio.create_task(session.run())
    done = asyncio.create_task(_applied(session, hardened.position))
    await asyncio.wait((running, done), return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
    took, spent = time.perf_counter() - began, time.process_time() - used
    sessions = _processor_s(west, f"application_name LIKE 'castling apply {GROUP}%'")
    running.cancel()
    await asyncio.wait((running,))
    await target.close()
    reader.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Taken(round(took, 3), round(spent, 2), round(sum(sessions.values()), 2), peak >> 10)


async def _applied(session: ApplySession, position: Position) -> None:
    while session.applied < position:
        await asyncio.sleep(0.01)


def _processor_s(server: EmbeddedServer, which: str) -> dict[int, float]:
    """Processor seconds that sessions of a server have used since they began."""
    found = {}
    for row in server.execute(f"SELECT pid FROM pg_stat_activity WHERE {which}"):
        fields = Path(f"/proc/{row[0]}/stat").read_text().rpartition(")")[2].split()
        found[int(str(row[0]))] = (int(fields[11]) + int(fields[12])) / _TICK
    return found


# --- the rounds -------------------------------------------------------------------------------

_SERVERS = ("east", "west")


def _fresh_copy(west: EmbeddedServer, name: str) -> None:
    west.execute(f"DROP DATABASE IF EXISTS {name}")
    west.execute(f"CREATE DATABASE {name} TEMPLATE {BASE} STRATEGY FILE_COPY")
    west.execute("CHECKPOINT")


def castling_round(
    folder: Path, backlogs: list[Backlog], servers: list[EmbeddedServer], settings: dict[str, int]
) -> dict[str, Taken]:
    _fresh_copy(servers[1], COPY)
    found = {}
    for backlog in backlogs:
        spec = [str(folder), backlog.journal, [server.port for server in servers], settings]
        done = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps(spec)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr)
        found[backlog.segment] = Taken(**json.loads(done.stdout))
    return found


def native_round(backlogs: list[Backlog], servers: list[EmbeddedServer]) -> dict[str, Taken]:
    """The same backlogs by a subscription, which has to fetch them from the source: one after the other, each
    timed from the end of the one before. `apply_s` is what the source's walsender used."""
    east, west = servers
    _fresh_copy(west, NATIVE)
    slot = f"{NATIVE_NAME}_round"
    east.execute(f"SELECT pg_copy_logical_replication_slot('{NATIVE_NAME}', '{slot}')", BASE)
    west.execute(
        f"CREATE SUBSCRIPTION {NATIVE_NAME} CONNECTION '{east.tcp_dsn(BASE)} password={east.PASSWORD}'"
        f" PUBLICATION {NATIVE_NAME} WITH (create_slot = false, slot_name = '{slot}', copy_data = false,"
        " binary = true, streaming = parallel)",
        NATIVE,
    )
    found: dict[str, Taken] = {}
    used: dict[int, float] = {}
    before, spent = time.perf_counter(), (0.0, 0.0)
    for backlog in backlogs:
        wait_for_sentinel(west.dsn(NATIVE), backlog.number, backlog.segment)
        now = time.perf_counter()
        sending = sum(_processor_s(east, "backend_type = 'walsender'").values())
        used |= _processor_s(west, "backend_type LIKE 'logical replication%worker'")
        applying = sum(used.values())
        taken = Taken(round(now - before, 3), round(sending - spent[0], 2), round(applying - spent[1], 2))
        found[backlog.segment] = taken
        before, spent = now, (sending, applying)
    west.execute(f"DROP SUBSCRIPTION {NATIVE_NAME}", NATIVE)
    return found


def shown(backlogs: list[Backlog], rounds: list[dict[str, Taken]], native: list[dict[str, Taken]]) -> str:
    lines = [
        "| backlog | row changes | wall s (least - most) | changes/s | apply CPU-s | target CPU-s | sum |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(each.segment, each, rounds) for each in backlogs),
    ]
    if native:
        lines += [
            "",
            "| native | row changes | wall s (least - most) | changes/s | walsender CPU-s | workers CPU-s"
            " | sum |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(_row(each.segment, each, native) for each in backlogs),
        ]
    peak = max(one.peak_mib for round_ in rounds for one in round_.values())
    return "\n".join([*lines, "", f"Peak memory of the apply process: {peak} MiB"])


def _row(name: str, backlog: Backlog, rounds: list[dict[str, Taken]]) -> str:
    taken = [round_[backlog.segment] for round_ in rounds]
    walls = [one.wall_s for one in taken]
    wall = statistics.median(walls)
    ours = statistics.median(one.apply_s for one in taken)
    theirs = statistics.median(one.target_s for one in taken)
    return (
        f"| {name} | {backlog.changes:,} | {wall:.2f} ({min(walls):.2f} - {max(walls):.2f})"
        f" | {backlog.changes / wall:,.0f} | {ours:.2f} | {theirs:.2f} | {ours + theirs:.2f} |"
    )


def run(folder: Path, chosen: argparse.Namespace, servers: list[EmbeddedServer]) -> None:
    if not (folder / "ready.json").exists():
        prepare(folder, chosen, *servers)
    backlogs = [Backlog(**each) for each in json.loads((folder / "ready.json").read_text())["backlogs"]]
    settings = {name: int(value) for name, _, value in (each.partition("=") for each in chosen.set)}
    ours: list[dict[str, Taken]] = []
    native: list[dict[str, Taken]] = []
    for _ in range(chosen.rounds):
        ours.append(castling_round(folder, backlogs, servers, settings))
        proven_equal(servers, COPY)
        if chosen.native:
            native.append(native_round(backlogs, servers))
            proven_equal(servers, NATIVE)
    version = servers[1].execute("SHOW server_version")[0][0]
    print(f"PostgreSQL {version}; {chosen.rounds} rounds; {cores()} cores\n")
    print(shown(backlogs, ours, native))


def proven_equal(servers: list[EmbeddedServer], copy: str) -> None:
    found = compare(servers[0].dsn(BASE), servers[1].dsn(copy), schemas=["public"])
    if found.differences:
        sys.exit(f"{copy} differs: {found.differences[:3]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--native", action="store_true", help="PostgreSQL's own subscription beside it")
    parser.add_argument("--folder", type=Path, help="make the backlogs here, or use those that are here")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=NUMBER", help="settings of the group")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        folder, journal, ports, settings = json.loads(chosen.one)
        print(json.dumps(asdict(apply_one(Path(folder), journal, ports, settings))))
        return 0
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="castling-bench-", dir="/var/tmp"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    servers = [EmbeddedServer(folder / name, name=name).start() for name in _SERVERS]
    try:
        run(folder, chosen, servers)
    finally:
        for server in servers:
            server.stop()
        if chosen.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
