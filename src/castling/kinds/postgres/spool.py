"""Transactions that the server streams while they are still open, kept until they commit.

A server whose memory for decoding is full either writes a large transaction to its own disk until it
commits, or streams what it has of it. It streams to us: its disk is spared, and the work is spread. What
has come is kept here, in memory up to a limit and then in temporary files that have no name, so that
nothing is left behind by a process that dies: the server sends an open transaction again from its
beginning.

When it commits, it is told as if it had come whole (protocol version 1): so nothing beyond the capture
knows of streaming. Source: PostgreSQL's documentation, "Logical Replication Message Formats": inside a
stream each message carries its subtransaction's identifier behind its kind.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from typing import IO, Final, final

from castling.errors import DecodeError, SpoolFailed
from castling.kinds.postgres.messages import pack_frames, split

__all__ = ["MEMORY", "Spool"]

#: bytes of messages that are kept in memory, of all open transactions together
MEMORY = 24 << 20
#: bytes of messages written to a file at once, about
_BLOCK: Final = 1 << 20

_BEGIN = struct.Struct(">cQqI")  # final lsn, commit time, xid
_COMMIT = struct.Struct(">cBQQq")  # flags, commit lsn, end lsn, commit time
_STREAM_COMMIT = struct.Struct(">cIBQQq")  # xid, flags, commit lsn, end lsn, commit time
_SIZE = struct.Struct("<I")


@final
class _Streamed:
    """One open transaction: what lies in its file, and behind it what is in memory."""

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None
        self.messages: list[bytes] = []
        self.size = 0
        #: identifiers of subtransactions that were rolled back
        self.gone: set[bytes] = set()
        #: it has committed and is being read
        self.is_told = False

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


@final
class Spool:
    """`directory`: where temporary files are made; they are unlinked at once."""

    def __init__(self, directory: str | None = None) -> None:
        self._directory = directory or ("/var/tmp" if os.path.isdir("/var/tmp") else None)
        self._open: dict[bytes, _Streamed] = {}
        self._current: _Streamed | None = None
        self._memory = 0
        #: bytes in files
        self.on_disk = 0
        #: streamed transactions that have committed
        self.committed = 0

    @property
    def transactions(self) -> int:
        return len(self._open)

    @property
    def in_memory(self) -> int:
        return self._memory

    def start(self, message: bytes) -> None:
        """Stream Start: what follows belongs to this transaction."""
        if len(message) != 6:
            raise DecodeError("a Stream Start message has the wrong length")
        xid = message[1:5]
        found = self._open.get(xid)
        if found is None or message[5]:
            if found is not None:
                self._forget(xid)
            found = _Streamed()
            self._open[xid] = found
        self._current = found

    def add(self, message: bytes) -> None:
        found = self._current
        if found is None:
            raise DecodeError("a streamed change comes outside a stream")
        found.messages.append(message)
        size = len(message) + 60
        found.size += size
        self._memory += size
        if self._memory > MEMORY:
            self._spill()

    def stop(self) -> None:
        """Stream Stop."""
        if self._current is None:
            raise DecodeError("a stream stops that has not begun")
        self._current = None

    def abort(self, message: bytes) -> None:
        """Stream Abort: of the whole transaction, or of one of its subtransactions."""
        if len(message) < 9:
            raise DecodeError("a Stream Abort message is cut off")
        xid, subxid = message[1:5], message[5:9]
        if xid == subxid:
            self._forget(xid)
        elif xid in self._open:
            self._open[xid].gone.add(subxid)

    def commit(self, message: bytes) -> Iterator[bytes]:
        """Stream Commit: the transaction as messages of protocol version 1."""
        if len(message) != _STREAM_COMMIT.size:
            raise DecodeError("a Stream Commit message has the wrong length")
        _, xid, flags, commit_lsn, end_lsn, time = _STREAM_COMMIT.unpack(message)
        key = message[1:5]
        if key not in self._open:
            raise DecodeError(f"transaction {xid} commits, but nothing of it was streamed")
        yield _BEGIN.pack(b"B", commit_lsn, time, xid)
        found = self._open[key]
        found.is_told = True
        self._memory -= found.size  # others come meanwhile, and must not be written out because of it
        found.size = 0
        for streamed in self._read(found):
            if streamed[0] == 0x4F:  # O: an origin carries no identifier
                yield streamed
            elif streamed[1:5] not in found.gone:
                if len(streamed) <= _BLOCK:
                    yield streamed[:1] + streamed[5:]
                else:
                    told = b"".join((streamed[:1], memoryview(streamed)[5:]))
                    streamed = b""
                    yield told
                    told = b""
        self._forget(key)
        self.committed += 1
        yield _COMMIT.pack(b"C", flags, commit_lsn, end_lsn, time)

    def close(self) -> None:
        for key in list(self._open):
            self._forget(key)
        self._current = None

    def _forget(self, xid: bytes) -> None:
        found = self._open.pop(xid, None)
        if found is not None:
            self._memory -= found.size
            if found.file is not None:
                self.on_disk -= found.file.tell()
            found.close()

    # --- files --------------------------------------------------------------------------------

    def _spill(self) -> None:
        """Write out the transaction that takes most of the memory."""
        largest = max((each for each in self._open.values() if not each.is_told), key=lambda each: each.size)
        try:
            if largest.file is None:
                largest.file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115  # until the commit
            before = largest.file.tell()
            at = 0
            while at < len(largest.messages):
                size = 0
                begin = at
                while at < len(largest.messages) and size < _BLOCK:
                    if at > begin and len(largest.messages[at]) > _BLOCK:
                        break
                    size += len(largest.messages[at])
                    at += 1
                if at - begin == 1:  # it may be large: it is not kept twice, here or when it is read
                    message = largest.messages[begin]
                    largest.file.write(_SIZE.pack(len(message) + 4) + _SIZE.pack(len(message)))
                    largest.file.write(message)
                    continue
                payload = pack_frames(largest.messages[begin:at])
                largest.file.write(_SIZE.pack(len(payload)))
                largest.file.write(payload)
            largest.file.flush()
        except OSError as error:
            raise SpoolFailed(
                f"a large open transaction can't be kept in {self._directory or tempfile.gettempdir()}:"
                f" {error.strerror}",
                hint="make room there: it takes as much as the transaction's changes",
            ) from error
        self.on_disk += largest.file.tell() - before
        self._memory -= largest.size
        largest.messages, largest.size = [], 0

    def _read(self, found: _Streamed) -> Iterator[bytes]:
        if found.file is not None:
            end = found.file.tell()
            found.file.seek(0)
            while found.file.tell() < end:
                (size,) = _SIZE.unpack(found.file.read(_SIZE.size))
                head = found.file.read(_SIZE.size)
                (first,) = _SIZE.unpack(head)
                if first == size - _SIZE.size:
                    yield found.file.read(first)
                else:
                    yield from split(head + found.file.read(size - _SIZE.size))
        yield from found.messages
