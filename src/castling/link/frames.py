"""The bytes of the link: frames, their bodies and limits. Pure; docs/formats/link.md is its page.

Everything decoded here comes from a network and is taken for hostile: a length is
compared with its limit before anything is allocated, and whatever does not follow the
page raises LinkProtocol. Nothing else is ever raised by a decoder.
"""

from __future__ import annotations

import enum
import functools
import struct
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import xxhash

from castling.errors import CastlingError, LinkError, LinkProtocol, LinkRefused
from castling.journal.segment import SEGMENT_VERSION
from castling.link.codec import unpack

__all__ = [
    "BATCH_MAX",
    "DATA_MAX",
    "HEADER_BYTES",
    "MAGIC",
    "PROTOCOL",
    "RECORD_FORMAT",
    "SESSION_MAX",
    "AckBody",
    "Batch",
    "FrameType",
    "Hello",
    "PingBody",
    "PongBody",
    "Purpose",
    "Refusal",
    "Spot",
    "TailBody",
    "WelcomeBody",
    "batch_head",
    "data_head",
    "decode",
    "decode_batch",
    "decode_data",
    "decode_header",
    "encode",
    "encode_header",
]

#: the protocol version spoken, and the oldest one understood
PROTOCOL = 1
PROTOCOL_MIN = 1
#: the format of the records in a BATCH (docs/formats/journal.md)
RECORD_FORMAT = SEGMENT_VERSION
MAGIC = "castling-link"

HEADER_BYTES = 8
#: bytes of a control body
CONTROL_MAX = 64 << 10
#: bytes of a BATCH body, and of its records uncompressed
BATCH_MAX = 24 << 20
#: bytes of one DATA body uncompressed
DATA_MAX = 1 << 20
#: bytes of a CALL or RESULT body
CALL_MAX = 1 << 20
#: bytes of the continuity token in a WELCOME
SESSION_MAX = 32 << 10

_HEADER = struct.Struct("<BBHI")
_BATCH = struct.Struct("<QQQIB3xQ")
_DATA = struct.Struct("<IB3xQ")


class FrameType(enum.IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    BATCH = 4
    ACK = 5
    PING = 6
    PONG = 7
    BYE = 8
    CALL = 16
    DATA = 17
    END = 18
    RESULT = 19
    ERROR = 20


_LIMITS = {
    FrameType.HELLO: CONTROL_MAX,
    FrameType.WELCOME: CONTROL_MAX,
    FrameType.REFUSE: CONTROL_MAX,
    FrameType.BATCH: BATCH_MAX,
    FrameType.ACK: CONTROL_MAX,
    FrameType.PING: CONTROL_MAX,
    FrameType.PONG: CONTROL_MAX,
    FrameType.BYE: 0,
    FrameType.CALL: CALL_MAX,
    FrameType.DATA: DATA_MAX + _DATA.size,
    FrameType.END: 0,
    FrameType.RESULT: CALL_MAX,
    FrameType.ERROR: CONTROL_MAX,
}


def encode_header(type: FrameType, length: int) -> bytes:
    """The header of a frame whose body has `length` bytes; the limit is the writer's duty too."""
    assert length <= _LIMITS[type], f"a {type.name} of {length} bytes is over its limit"
    return _HEADER.pack(type, 0, 0, length)


def decode_header(data: bytes) -> tuple[FrameType, int]:
    """Type and body length; LinkProtocol when either is out of bounds."""
    number, flags, reserved, length = _HEADER.unpack(data)
    try:
        type = FrameType(number)
    except ValueError:
        raise LinkProtocol(f"a frame of unknown type {number}") from None
    if flags or reserved:
        raise LinkProtocol(f"a {type.name} frame has flags that version {PROTOCOL} does not know")
    if length > _LIMITS[type]:
        raise LinkProtocol(f"a {type.name} frame announces {length} bytes, more than {_LIMITS[type]}")
    return type, length


# --- control bodies ---------------------------------------------------------------------------

_U63 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_I64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Word = Annotated[str, msgspec.Meta(max_length=100)]
_Text = Annotated[str, msgspec.Meta(max_length=8000)]
_Version = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Purpose(enum.StrEnum):
    RECORDS = "records"
    BULK = "bulk"


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    magic: _Word
    version_min: _Version
    version_max: _Version
    installation: _Word
    group: _Word
    node: _Word
    epoch: _U63
    purpose: Purpose
    journal_format: _Version
    software: _Word = ""


class Spot(msgspec.Struct, frozen=True, kw_only=True):
    """A record's position and what its header says of source and time."""

    epoch: _U63
    seq: _U63
    offset: _U63
    t_ns: _I64


class TailBody(Spot, frozen=True, kw_only=True):
    session: Annotated[bytes, msgspec.Meta(max_length=SESSION_MAX)] | None = None


class WelcomeBody(msgspec.Struct, frozen=True, kw_only=True):
    version: _Version
    node: _Word
    tail: TailBody
    epoch: _U63
    state: dict[str, Any]
    wall_ns: _I64


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """An error on its way to the other side."""

    code: _Word
    message: _Text
    hint: _Text = ""
    retryable: bool = False
    context: dict[str, Any] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, error: CastlingError) -> Refusal:
        plain = error.as_json()
        context = plain["context"]
        if len(msgspec.msgpack.encode(context)) > CONTROL_MAX // 4:
            context = {}
        return cls(
            code=error.code,
            message=str(error)[:4000],
            hint=error.hint[:4000],
            retryable=error.retryable,
            context=context,
        )

    def as_error(self) -> CastlingError:
        """The error that the other side meant, as its own class."""
        found = _errors_by_code().get(self.code)
        reserved = ("self", "message", "hint")
        context = {key: value for key, value in self.context.items() if key not in reserved}
        if found is None:
            found = LinkError if self.retryable else LinkRefused
            context["code"] = self.code
        return found(self.message, hint=self.hint, **context)


class AckBody(msgspec.Struct, frozen=True, kw_only=True):
    batches: _U63
    hardened: Spot
    received_seq: _U63
    applied: Spot | None
    state: dict[str, Any]
    wall_ns: _I64


class PingBody(msgspec.Struct, frozen=True, kw_only=True):
    mono_ns: _I64
    wall_ns: _I64


class PongBody(PingBody, frozen=True, kw_only=True):
    peer_wall_ns: _I64


def _errors_by_code() -> dict[str, type[CastlingError]]:
    found: dict[str, type[CastlingError]] = {}
    waiting: list[type[CastlingError]] = [CastlingError]
    while waiting:
        error = waiting.pop()
        found.setdefault(error.code, error)
        waiting.extend(error.__subclasses__())
    return found


Body = TypeVar("Body", bound=msgspec.Struct)

_encoder = msgspec.msgpack.Encoder()


@functools.cache
def _decoder(type: Any) -> Any:
    return msgspec.msgpack.Decoder(type)


def encode(body: msgspec.Struct) -> bytes:
    """A control body's bytes."""
    return _encoder.encode(body)


def decode(data: bytes, type: type[Body]) -> Body:
    """A control body of the given shape; LinkProtocol when it has another."""
    decoder: msgspec.msgpack.Decoder[Body] = _decoder(type)
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise LinkProtocol(f"a {type.__name__} can't be read: {str(error)[:200]}") from error


# --- records and bulk data --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """A continuous run of records of one epoch, uncompressed and with its sum verified."""

    epoch: int
    first: int
    last: int
    data: bytes | memoryview


def batch_head(epoch: int, first: int, last: int, data: bytes, codec: int) -> bytes:
    """What stands before the records `data` (given uncompressed) in a BATCH body."""
    assert len(data) <= BATCH_MAX, f"a run of {len(data)} bytes is over the limit of a batch"
    return _BATCH.pack(epoch, first, last, len(data), codec, xxhash.xxh3_64_intdigest(data))


def decode_batch(body: bytes) -> Batch:
    """The verified records of a BATCH body."""
    if len(body) < _BATCH.size:
        raise LinkProtocol("a BATCH is shorter than its head")
    epoch, first, last, length, codec, sum = _BATCH.unpack_from(body)
    if not first <= last:
        raise LinkProtocol(f"a BATCH goes from seq {first} to {last}")
    data = unpack(memoryview(body)[_BATCH.size :], codec, length, limit=BATCH_MAX)
    _verify(data, sum, "BATCH")
    return Batch(epoch, first, last, data)


def data_head(data: bytes, codec: int) -> bytes:
    """What stands before the bytes `data` (given uncompressed) in a DATA body."""
    assert len(data) <= DATA_MAX, f"a bulk chunk of {len(data)} bytes is over its limit"
    return _DATA.pack(len(data), codec, xxhash.xxh3_64_intdigest(data))


def decode_data(body: bytes) -> bytes:
    """The verified bytes of a DATA body."""
    if len(body) < _DATA.size:
        raise LinkProtocol("a DATA is shorter than its head")
    length, codec, sum = _DATA.unpack_from(body)
    data = unpack(memoryview(body)[_DATA.size :], codec, length, limit=DATA_MAX)
    _verify(data, sum, "DATA")
    return bytes(data)


def _verify(data: bytes | memoryview, sum: int, what: str) -> None:
    if xxhash.xxh3_64_intdigest(data) != sum:
        raise LinkProtocol(f"a {what} was damaged on the way: its sum does not match")
