"""One end of a stream as a process: `python -m castling.groups.worker`.

Started by the agent in a session of its own, so that it outlives the agent. It holds a
lock file with its process id, writes its report twice a second, and ends with 0 on
SIGTERM or with the exit code of the error that trying again can't heal. With `--prepared` it only
loads what it needs, and is the end when it is told to; until then it holds nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from castling.config import Config, load
from castling.errors import AlreadyRunning, CastlingError, NotInitialised
from castling.groups.apply import ApplyEnd
from castling.groups.receive import ReceiveEnd
from castling.groups.role import Role, load_roles
from castling.groups.source import SourceEnd
from castling.groups.topology import (
    End,
    EndName,
    EndPaths,
    capture_node,
    end_paths,
    group_settings,
    in_roles,
    listen_address,
    receive_address,
    stream_folder,
)
from castling.host import RealHost
from castling.kinds import load as load_kind
from castling.kinds.base import Stream
from castling.link.tls import NodeTls
from castling.observe import configure_events, events, write_report

__all__ = ["main", "run_end"]

REPORT_S = 0.5


class _End(Protocol):
    async def run(self) -> None: ...
    def report(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class _Place:
    """Where and as whom this process works."""

    home: Path
    node: str
    config: Config  #: as the current roles make it
    role: Role
    end: End
    paths: EndPaths


def _place(home: Path, end: End) -> _Place:
    name, deployed = home / "node" / "name", home / "deployed.toml"
    if not name.exists():
        raise NotInitialised(f"{home} has no node", hint="`castling init` or `castling join` makes one")
    if not deployed.exists():
        raise NotInitialised(f"nothing is deployed in {home}", hint="run `castling deploy`")
    config = load(deployed)
    group_settings(config, end.group)
    primaries = {name: group.primary for name, group in config.groups.items()}
    roles = load_roles(RealHost(), str(home / "groups"), primaries)
    node = name.read_text().strip()
    return _Place(home, node, in_roles(config, roles), roles[end.group], end, end_paths(home, end))


def _build(place: _Place, host: RealHost) -> _End:
    settings = group_settings(place.config, place.end.group)
    stream = Stream(place.end.group, place.end.backup, settings, place.config)
    kind = load_kind(settings.kind)
    tls = NodeTls(
        place.home / "ca" / "ca.pem", place.home / "node" / "node.pem", place.home / "node" / "node.key"
    )
    installation = tls.installation
    if place.end.end is EndName.APPLY:
        return ApplyEnd(
            host,
            str(stream_folder(place.home, stream)),
            stream,
            decoder=lambda: kind.decoder(stream),
            target=lambda: kind.target(stream),
        )
    if place.end.end is EndName.RECEIVE:
        return ReceiveEnd(
            host,
            str(stream_folder(place.home, stream)),
            stream,
            listen=listen_address(place.config, stream.group, stream.backup),
            tls=tls,
            installation=installation,
            node=place.node,
            allowed={capture_node(settings)},
            epoch=place.role.epoch,
            seed_target=kind.seed_target(stream),
        )
    return SourceEnd(
        host,
        stream,
        address=receive_address(place.config, stream.group, stream.backup),
        tls=tls,
        installation=installation,
        node=place.node,
        epoch=place.role.epoch,
        capture=kind.capture(stream),
        seed_source=kind.seed_source(stream),
        folder=str(stream_folder(place.home, stream)),
    )


@contextlib.contextmanager
def _locked(path: Path) -> Any:
    """Hold the end's lock; AlreadyRunning when another process does."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise AlreadyRunning(f"process {pid or '(unknown)'} already holds {path.name}") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    try:
        yield
    finally:
        os.close(fd)


def _report(
    place: _Place, end: _End | None, state: str | None, error: CastlingError | None
) -> dict[str, Any]:
    found = {} if end is None else end.report()
    error = error or getattr(end, "error", None)
    return {
        "v": 1,
        "group": place.end.group,
        "backup": place.end.backup,
        "end": str(place.end.end),
        "node": place.node,
        "pid": os.getpid(),
        "at_ns": time.time_ns(),
        "state": state or getattr(end, "state", "running"),
        "detail": "" if error is None else str(error),
        "error": None if error is None else error.as_json(),
        **found,
    }


async def _report_for_ever(make: Callable[[], dict[str, Any]], path: Path, log: Any) -> None:
    """Write the report twice a second; what goes wrong, and that it has healed, also stands in the log."""
    before: str | None = None
    while True:
        report = make()
        write_report(path, report)
        code = None if report["error"] is None else report["error"]["code"]
        if code is not None and code != before:
            log.warning("group.end_troubled", code=code, detail=report["detail"])
        elif code is None and before is not None:
            log.info("group.end_healed", code=before)
        before = code
        await asyncio.sleep(REPORT_S)


async def run_end(place: _Place) -> None:
    """Run the end until SIGTERM or SIGINT, or until an error that ends it."""
    log = events("group").bind(group=place.end.group, backup=place.end.backup, end=str(place.end.end))
    end = _build(place, RealHost())
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stopping.set)
    log.info("group.end_started", pid=os.getpid())
    working = asyncio.create_task(end.run())
    reporting = asyncio.create_task(
        _report_for_ever(lambda: _report(place, end, None, None), place.paths.report, log)
    )
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait((working, waiting, reporting), return_when=asyncio.FIRST_COMPLETED)
    for task in (working, reporting, waiting):
        task.cancel()
    results = await asyncio.gather(working, reporting, waiting, return_exceptions=True)
    failure = next((_innermost(found) for found in results[:2] if _failed(found)), None)
    if failure is None:
        write_report(place.paths.report, _report(place, None, "stopped", None))
        log.info("group.end_stopped")
        return
    raise failure


def _failed(found: object) -> bool:
    return isinstance(found, BaseException) and not isinstance(found, asyncio.CancelledError)


def _innermost(error: object) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, BaseException)
    return error


def _told_to_begin(home: Path, group: str) -> bool:
    """Load what the group's kind needs and wait for a word on standard input; False: it ended."""
    with contextlib.suppress(CastlingError, OSError):  # the end itself tells what is wrong
        kind = group_settings(load(home / "deployed.toml"), group).kind
        load_kind(kind)
    return bool(sys.stdin.buffer.readline())


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process; the exit code is 0 or that of the error."""
    parser = argparse.ArgumentParser(prog="castling.groups.worker", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--backup", required=True)
    parser.add_argument("--end", type=EndName, choices=list(EndName), required=True)
    parser.add_argument("--prepared", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.prepared and not _told_to_begin(chosen.home, chosen.group):
        return 0
    configure_events(json=True)
    # a batch is hundreds of thousands of objects without a cycle among them: looking through them for
    # cycles at Python's usual rhythm cost more than decoding them. The limit is more than all that may wait
    # to be applied holds, so that only what is left in cycles reaches it
    gc.freeze()
    gc.set_threshold(500_000, 20, 100)
    log = events("group").bind(group=chosen.group, end=str(chosen.end))
    try:
        place = _place(chosen.home, End(chosen.group, chosen.backup, chosen.end))
        with _locked(place.paths.lock):
            try:
                asyncio.run(run_end(place))
            except CastlingError as error:
                write_report(place.paths.report, _report(place, None, "failed", error))
                raise
    except CastlingError as error:
        log.error("group.end_failed", **error.as_json())
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
