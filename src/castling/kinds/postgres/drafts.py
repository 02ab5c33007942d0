"""pgoutput's messages into journal drafts. Pure; the form is docs/formats/postgres-stream.md.

Messages are not looked into beyond their kind, their table's identifier and a commit's end: what the
server said is what the journal holds. A draft's `offset` is the end of the last commit before
it ends, because that is where the server would have to begin again.

When capture goes on after `resume`, the server begins a little earlier, and the transactions
that the journal already holds are passed over. One of them must end exactly at `resume`: a
server that was set back to an older state and has gone on differently has no commit there.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import final

from castling.errors import ContinuityLost, DecodeError
from castling.journal.record import Draft, Flag, RecordType
from castling.kinds.postgres.ddl_message import DDL_PREFIX
from castling.kinds.postgres.heartbeat import PREFIX
from castling.kinds.postgres.lsn import lsn_text
from castling.kinds.postgres.messages import pack_frames, unix_ns
from castling.kinds.postgres.session import RESEED
from castling.kinds.postgres.spool import Spool

__all__ = ["DRAFT_BYTES", "KEYFRAME_BYTES", "PART", "PART_BYTES", "PART_LAST", "DraftMaker"]

#: bytes of messages in one draft, about
DRAFT_BYTES = 1 << 20
#: bytes of messages between two keyframes
KEYFRAME_BYTES = 16 << 20
#: a message larger than this is cut into records of this size
PART_BYTES = 8 << 20
#: `object` of a DATA record that holds a part of one message; PART_LAST: its end
PART, PART_LAST = 1, 2

#: memory for messages that wait behind a transaction that is being told, about
BEHIND_BYTES = 16 << 20

_BEGIN = struct.Struct(">cQqI")
_COMMIT = struct.Struct(">cBQQq")
_MESSAGE = struct.Struct(">cBQ")
_HEARTBEAT = PREFIX.encode() + b"\0"
_DDL = DDL_PREFIX.encode() + b"\0"
_LENGTH = struct.Struct("<I")


@final
class DraftMaker:
    """Takes messages one by one; `ready` gives the drafts that are complete. Of a transaction that was
    streamed while it was open, drafts are made when it has committed (`unspool`); what comes meanwhile
    waits behind it, so that the server need not.

    `resume`: what the journal holds already. `begins`: where the server begins to send, at or
    before it. `any_commit`: nothing has to end exactly at `resume`, because it was no commit's end.
    `last_commit`: where the last transaction that the journal holds ends, if that is before `resume`.
    """

    def __init__(self, *, resume: int, begins: int, any_commit: bool, last_commit: int | None = None) -> None:
        #: end of the last commit taken, where capture would go on
        self.resume = resume
        self.in_transaction = False
        self.frames = 0
        self.bytes = 0
        #: what the last heartbeat that came through said, wall clock of its sender
        self.heartbeat_ns: int | None = None
        #: the source is known to have the history that the journal was written from
        self.last_commit = resume if last_commit is None else last_commit
        self.proven = begins >= self.last_commit or any_commit
        #: a transaction that ends behind the last one and before `resume` is of another history
        self._strict = not any_commit
        self._last_held = self.last_commit
        #: asked of each message about the schema: whether the source's own triggers wrote it
        self.trusts: Callable[[bytes], bool] | None = None
        #: open transactions that are streamed; one of them has committed and is being told
        self.spool = Spool()
        self.is_unspooling = False
        self._unspooled: Iterator[bytes] | None = None
        #: what came behind it, but for streams, which go on into the spool
        self._behind: deque[bytes] = deque()
        self._behind_bytes = 0
        #: so much of that waits that no more should be taken
        self.is_full = False
        self._in_stream = False
        self._held = resume  # transactions up to here are in the journal already
        self._passing_over = False
        self._descriptions: dict[bytes, bytes] = {}
        self._messages: list[bytes] = []
        self._commits: list[int] = []
        self._size = 0
        self._flags = Flag.NONE
        self._since_keyframe = 0
        self._ready: list[Draft] = []

    def ready(self) -> list[Draft]:
        """The drafts of all that was taken so far, a transaction under way among them."""
        self._close()
        drafts, self._ready = self._ready, []
        return drafts

    def take(self, message: bytes) -> None:
        """One message. ContinuityLost when the server shows not to be the one that was captured."""
        self.frames += 1
        self.bytes += len(message)
        kind = message[0]
        if self._in_stream:
            if kind == 0x45:  # E
                self._in_stream = False
                self.spool.stop()
            else:
                self.spool.add(message)
        elif kind == 0x53:  # S
            self._in_stream = True
            self.spool.start(message)
        elif kind == 0x41:  # A
            self.spool.abort(message)
        elif self.is_unspooling:
            self._behind.append(message)
            self._behind_bytes += len(message) + 60
            self.is_full = self._behind_bytes > BEHIND_BYTES
        elif kind == 0x63:  # c
            self._unspooled = self.spool.commit(message)
            self.is_unspooling = True
        else:
            self._take_whole(message)

    def unspool(self, max_bytes: int) -> None:
        """Go on with a transaction that was streamed and has committed, and with what came behind it: about
        `max_bytes` of it."""
        size = 0
        while size < max_bytes:
            if self._unspooled is not None:
                message = next(self._unspooled, b"")
                if not message:
                    self._unspooled = None
                    continue
            elif self._behind:
                message = self._behind.popleft()
                self._behind_bytes -= len(message) + 60
                self.is_full = self._behind_bytes > BEHIND_BYTES
                if message[0] == 0x63:  # c
                    self._unspooled = self.spool.commit(message)
                    continue
            else:
                self.is_unspooling = False
                return
            self._take_whole(message)
            size += len(message)

    def close(self) -> None:
        """Let go of what the spool holds: the server sends it again."""
        self.spool.close()
        self._behind.clear()
        self._unspooled = None

    def _take_whole(self, message: bytes) -> None:
        kind = message[0]
        if kind == 0x42:  # B
            self._begin(message)
        elif kind in b"RY":
            self._descriptions[message[:5]] = message
        elif kind == 0x4D:  # M
            self._note_heartbeat(message)
            if not self._is_trusted(message):
                return
        if self._passing_over:
            if kind == 0x43:
                self._pass_over(message)
            return
        if len(message) > PART_BYTES:
            self._add_in_parts(message)
        else:
            self._messages.append(message)
            self._size += len(message) + 4
        if kind == 0x43:  # C
            self._commit(message)
        if self._size >= DRAFT_BYTES:
            self._close()

    def rest(self, token: bytes, wal_end: int) -> None:
        """The server has nothing for us before `wal_end` and wants to hear that this is safe: a
        session that begins there says so in the journal."""
        assert not self.in_transaction and not self.is_unspooling, (
            "a session can't begin inside a transaction"
        )
        self._close()
        self.resume = wal_end
        self._ready.append(Draft(RecordType.SESSION, token, wal_end, Flag.KEYFRAME))
        self._since_keyframe = KEYFRAME_BYTES  # the decoder forgets what the server won't repeat

    # --- transactions -------------------------------------------------------------------------

    def _begin(self, message: bytes) -> None:
        if len(message) != _BEGIN.size or self.in_transaction:
            raise DecodeError("a Begin message is garbled or comes inside a transaction")
        self.in_transaction = True
        final = _BEGIN.unpack(message)[1]
        self._passing_over = final < self._held
        if self._passing_over:
            return
        if not self.proven:
            raise self._other_history()
        if self._since_keyframe >= KEYFRAME_BYTES:
            self._begin_keyframe()

    def _pass_over(self, message: bytes) -> None:
        end = self._end_of(message)[0]
        if end > self._held or (self._strict and end > self._last_held):
            raise self._other_history()
        self.proven = self.proven or end == self._last_held
        self.in_transaction = self._passing_over = False
        self._since_keyframe = KEYFRAME_BYTES  # descriptions that were passed over are needed later

    def _other_history(self) -> ContinuityLost:
        return ContinuityLost(
            f"the source has no commit that ends at {lsn_text(self._last_held)}, as the journal's last does:"
            " it was restored to an older state and has gone on from there",
            hint=RESEED,
        )

    def _commit(self, message: bytes) -> None:
        end, time_us = self._end_of(message)
        if end < self.resume:
            raise DecodeError("a Commit message ends before the one before it")
        self.in_transaction = False
        self.resume = self.last_commit = end
        self._commits.append(unix_ns(time_us))

    @staticmethod
    def _end_of(message: bytes) -> tuple[int, int]:
        if len(message) != _COMMIT.size:
            raise DecodeError("a Commit message has the wrong length")
        _, _, _, end, time_us = _COMMIT.unpack(message)
        return end, time_us

    def _note_heartbeat(self, message: bytes) -> None:
        if not message.startswith(_HEARTBEAT, _MESSAGE.size):
            return
        content = _MESSAGE.size + len(_HEARTBEAT) + 4
        if content < len(message):
            with contextlib.suppress(ValueError):
                self.heartbeat_ns = int(message[content:])

    def _is_trusted(self, message: bytes) -> bool:
        """Anybody can write a message, and what one about the schema says is executed on the target."""
        if not message.startswith(_DDL, _MESSAGE.size):
            return True
        return self.trusts is not None and self.trusts(message[_MESSAGE.size + len(_DDL) + 4 :])

    # --- drafts -------------------------------------------------------------------------------

    def _begin_keyframe(self) -> None:
        """Begin a draft in which decoding can begin: every description first."""
        self._close()
        self._flags = Flag.KEYFRAME
        for message in self._descriptions.values():
            self._messages.append(message)
            self._size += len(message) + 4
            if self._size >= DRAFT_BYTES:
                self._close()
        self._since_keyframe = 0

    def _close(self) -> None:
        if not self._messages:
            return
        self._emit(pack_frames(self._messages), 0, self._size)
        self._messages, self._size = [], 0

    def _add_in_parts(self, message: bytes) -> None:
        """A message too large for a batch of the link: records that each hold a part of it."""
        self._close()
        head = _LENGTH.pack(len(message))
        at, end = 0, PART_BYTES - len(head)
        while at < len(message):
            part = head + message[at:end]
            self._emit(part, PART if end < len(message) else PART_LAST, len(part))
            head, at, end = b"", end, end + PART_BYTES

    def _emit(self, payload: bytes, object_: int, size: int) -> None:
        self._ready.append(
            Draft(
                RecordType.DATA,
                payload,
                self.resume,
                self._flags,
                object=object_,
                commits=tuple(self._commits),
            )
        )
        self._since_keyframe += size
        self._commits, self._flags = [], Flag.NONE
