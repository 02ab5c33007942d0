"""The apply end: keeps the replica up with the remote journal.

Holds nothing of its own: progress is in the target. A connection that breaks, a lock
that times out: the session is begun again from the target's progress. What would hide a
difference (a row that is not there, a gap, rot) ends it for good, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from castling.apply.schedule import Limits
from castling.apply.session import ApplySession, Figures
from castling.errors import CastlingError, JournalGap, PartsMoved, TargetForeign
from castling.groups.backoff import Backoff
from castling.groups.stream import SeedState, StreamState, load_stream
from castling.host import Host
from castling.journal.marks import Marks
from castling.journal.reader import JournalReader
from castling.kinds.base import Decoder, Stream, Target
from castling.observe import events

__all__ = ["ApplyEnd"]


class ApplyEnd:
    """One backup's applying half of a stream."""

    #: seconds between two looks whether the first copy is complete
    POLL_S = 1.0

    def __init__(
        self,
        host: Host,
        folder: str,
        stream: Stream,
        *,
        decoder: Callable[[], Decoder],
        target: Callable[[], Target],
    ) -> None:
        self._host = host
        self._folder = folder
        host.disk.makedirs(folder)  # the receive end may not have been here yet
        self._settings = stream.settings
        self._decoder = decoder
        self._target = target
        self.figures = Figures()
        self._log = events("group").bind(group=stream.group, backup=stream.backup)
        self.state = "starting"
        self.error: CastlingError | None = None
        self._session: ApplySession | None = None
        self._current: Target | None = None

    async def run(self) -> None:
        """Apply until cancelled, or until an error that trying again can't heal."""
        hardened = self._host.bell(f"{self._folder}/apply.bell")
        applied = self._host.bell(f"{self._folder}/receive.bell")
        backoff = Backoff(self._host)
        try:
            while True:
                stream = load_stream(self._host, self._folder)
                if stream.seed is not SeedState.SEEDED:
                    self.state = "waiting"
                    await hardened.wait(self.POLL_S)
                    continue
                try:
                    await self._apply(hardened, applied, backoff)
                except PartsMoved as error:
                    # every one of them is a change that was noted: there is nothing to wait for
                    self._log.warning("group.parts_moved", detail=str(error))
                except CastlingError as error:
                    if not (error.retryable or self._was_reseeded(error, stream)):
                        raise
                    self.state, self.error = "waiting", error
                    await backoff.wait()
        finally:
            hardened.close()
            applied.close()

    def _was_reseeded(self, error: CastlingError, before: StreamState) -> bool:
        """When a new first copy was begun, a journal and a copy that vanished under us are no losses."""
        return (
            isinstance(error, JournalGap | TargetForeign) and load_stream(self._host, self._folder) != before
        )

    async def _apply(self, hardened: Any, applied: Any, backoff: Backoff) -> None:
        journal = f"{self._folder}/journal"
        reader = JournalReader(self._host, journal)
        target = self._current = self._target()
        self._session = ApplySession(
            self._host,
            reader,
            self._decoder(),
            target,
            Marks(self._host, journal),
            hardened=hardened,
            applied=applied,
            limits=Limits(self._settings.batch_changes, self._settings.apply_memory // 2),
            memory=self._settings.apply_memory // 2,
            hold_bytes=self._settings.retention.hold,
            figures=self.figures,
        )
        self.state = "running"

        def healed() -> None:
            self.error = None
            backoff.reset()

        try:
            await self._session.run(on_commit=healed)
        finally:
            await target.close()
            reader.close()
            self._session = self._current = None

    def _holds(self) -> list[dict[str, Any]] | None:
        """The parts that stand behind, oldest first; None when the target has not been asked yet."""
        if self.figures.held is None:
            return None
        now_ns = self._host.wall_ns()
        return [
            {
                "part": part.part,
                "state": part.state,
                "offset": part.offset,
                "since_ns": part.since_ns,
                "age_s": max(0.0, (now_ns - part.since_ns) / 1e9),
                "reason": part.reason,
                "sqlstate": part.sqlstate,
                "pinned_bytes": pinned,
            }
            for part, pinned in self.figures.held
        ]

    def report(self) -> dict[str, Any]:
        """Figures for the report tree; what is not known is None."""
        session = self._session
        return {
            "positions": {"applied": None if session is None else str(session.applied)},
            "apply_lag_s": None if session is None else session.lag_s(),
            "apply_lag": self.figures.lag.taken.as_json(),
            "target": {} if self._current is None else self._current.report(),
            "holds": self._holds(),
            "counters": self.figures.counters(),
        }
