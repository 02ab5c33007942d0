"""What a backup remembers about a stream: whether the first copy is there.

The state lives beside the remote journal in `stream.json` and changes only in this
order: empty → seeding → seeded; a new seed goes back to seeding. The apply end works
only while it is `seeded`. A copy that was begun and not finished is gone on with: the journal
holds everything from its beginning on.

A stream that a role change begins is `seeded` from its first record on, because its target was the source
until then. Where the node may hold commits that nobody else has, it is `apart` until it is reintroduced:
nothing is received, applied or copied over it.
"""

from __future__ import annotations

import enum

import msgspec

from castling.errors import LinkProtocol, StateError
from castling.groups.role import write_durably
from castling.host import Host

__all__ = ["BulkRequest", "SeedState", "StreamState", "load_stream", "save_stream"]

_FILE = "stream.json"
_FILE_MAX = 64 << 10


class SeedState(enum.StrEnum):
    EMPTY = "empty"
    SEEDING = "seeding"
    SEEDED = "seeded"
    APART = "apart"


class StreamState(msgspec.Struct, frozen=True):
    """`seeds`: how often a first copy was begun; it tells an apply end that a new one was. `begun`: the
    journal is that of the copy being made, from its beginning on. `epoch`: that in which a role change began
    the stream, 0 where none did."""

    seed: SeedState = SeedState.EMPTY
    seeds: int = 0
    begun: bool = False
    epoch: int = 0


def load_stream(host: Host, folder: str) -> StreamState:
    """The state kept in `folder`; empty when there is none."""
    path = f"{folder}/{_FILE}"
    if not host.disk.exists(path):
        return StreamState()
    file = host.disk.open(path)
    try:
        return msgspec.json.decode(file.read_at(0, _FILE_MAX), type=StreamState)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StateError(
            f"{path} can't be read; whether the replica is complete is not known",
            hint="remove the stream's folder and seed again",
        ) from error
    finally:
        file.close()


def save_stream(host: Host, folder: str, state: StreamState) -> None:
    """Make `state` durable."""
    write_durably(host, folder, _FILE, msgspec.json.encode(state))


class BulkRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """The description of a bulk call: for the stream itself, or for its kind (`meta` is the kind's).

    `seed.begin` empties the remote journal and marks the stream seeding; `seed.finish`
    marks it seeded. `parts.wanted` answers with what of a seeded target is to be copied anew, `parts.copy`
    brings one such copy; both in the kind's words.
    """

    op: str
    meta: bytes = b""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> BulkRequest:
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise LinkProtocol("a bulk request can't be read") from error
