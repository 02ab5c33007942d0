"""What the tests of a first copy that breaks off share: attempts, interruptions, and what was copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from tests.real.pg_cast import BulkTo, Journal, Pair, captured

from castling.errors import PartsMoved, SeedLost, TargetUnreachable
from castling.journal.record import Flag, Record
from castling.kinds.base import BulkCall, Piece, SeedProgress, SeedTarget, Stream
from castling.kinds.postgres.kind import KIND
from castling.kinds.postgres.seed_plan import Chunk, Patch, Renew, Renewed, decode, decode_request
from castling.testing.compare import compare

__all__ = ["Copying", "Cut", "Never"]


class Cut:
    """The bulk channel breaks off at the `call`th call of a kind: before it, in its body, or when it was
    carried out and its answer is lost."""

    def __init__(self, kind: type, where: str, call: int = 1) -> None:
        self.kind, self.where, self._left = kind, where, call
        self.happened = False

    def is_due(self, request: object) -> bool:
        self._left -= isinstance(request, self.kind)
        self.happened = self.happened or self._left == 0
        return isinstance(request, self.kind) and self._left == 0


class Never(Cut):
    def __init__(self) -> None:
        super().__init__(type(None), "never")


class _Bulk(BulkTo):
    def __init__(self, target: SeedTarget, cut: Cut, copying: Copying) -> None:
        super().__init__(target)
        self._cut = cut
        self._copying = copying

    async def open(self) -> BulkCall:
        call = await super().open()

        async def counted(meta: bytes, body: AsyncIterator[bytes] | None) -> bytes:
            request = decode_request(meta)
            due = self._cut.is_due(request)
            if due and self._cut.where == "before":
                raise TargetUnreachable("cut by the test")
            answer = await call(meta, _broken(body) if due and self._cut.where == "within" and body else body)
            if isinstance(request, Chunk | Patch):
                self._copying.copied[type(request).__name__] += int(answer)
            elif isinstance(request, Renew):
                self._copying.restarted += decode(answer, Renewed).restarted
            if due:
                raise TargetUnreachable("cut by the test")
            return answer

        return counted


async def _broken(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for data in body:
        yield data[: len(data) // 2]
        raise TargetUnreachable("cut by the test")


class Copying:
    """One first copy in as many attempts as a test makes of it, each of new objects, as if both ends died.

    The journal is in memory; it follows the source as far as it is asked for.
    """

    def __init__(self, pair: Pair, stream: Stream) -> None:
        self.pair, self.stream = pair, stream
        self.journal = Journal()
        self.has_begun = False
        #: rows that were copied, by what brought them
        self.copied: Counter[str] = Counter()
        #: tables that began anew: schema, name, why
        self.restarted: list[tuple[str, str, str]] = []
        #: how often the copy was begun from its very beginning
        self.begun = 0

    async def records(self, since: int, until: int) -> AsyncIterator[Record]:
        await self.capture(until)
        keyframes = [
            at
            for at, record in enumerate(self.journal.records)
            if record.flags & Flag.KEYFRAME and record.offset <= since
        ]
        for record in self.journal.records[keyframes[-1] :]:
            yield record

    async def capture(self, until: int) -> None:
        if self.journal.offset < until:
            async with captured(self.stream, self.journal) as capture:
                await self.journal.read_until(capture, until)
                await capture.acknowledge(self.journal.offset)

    async def attempt(self, cut: Cut | None = None) -> SeedProgress | None:
        """None when it broke off as it should; after SeedLost it is begun anew, as the source end does."""
        seed: Any = KIND.seed_source(self.stream)
        target = KIND.seed_target(self.stream)
        target.records = self.records
        try:
            try:
                await self._begin(seed)
                await seed.run(_Bulk(target, cut or Never(), self))
            except SeedLost:
                self.has_begun = False
                return await self.attempt(cut)
            found: SeedProgress = seed.progress
            return found
        except TargetUnreachable as error:
            if str(error) != "cut by the test":
                raise
            return None
        finally:
            await seed.close()
            await target.close()

    async def _begin(self, seed: Any) -> None:
        if self.has_begun:
            await seed.resume()
            return
        await seed.begin()
        self.begun += 1
        self.has_begun, self.journal = True, Journal()

    async def apply(self) -> None:
        """What the source has by now, through decoder and target."""
        await self.capture(self.pair.end_of_log())
        for _ in range(20):
            target = KIND.target(self.stream)
            try:
                start = await target.open()
                for commit, changes in self.journal.commits(decoder=KIND.decoder(self.stream)):
                    if commit.offset > start:
                        await target.apply([Piece(changes, len(changes), commit, commit.offset - 1)])
                        await target.commit(commit)
                return
            except PartsMoved:
                continue
            finally:
                await target.close()

    def differences(self) -> list[Any]:
        found = compare(self.pair.east.dsn(self.pair.name), self.pair.west.dsn(self.pair.name))
        assert found.tables > 0
        return found.differences
