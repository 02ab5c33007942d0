"""What the two ends say to each other about tables that are copied anew. Pure."""

from __future__ import annotations

import msgspec

from castling.errors import LinkProtocol

__all__ = ["Anew", "PartRequest", "Refused", "decode_part", "decode_wanted", "encode_part", "encode_wanted"]


class Anew(msgspec.Struct, frozen=True, tag="anew"):
    """The body is COPY data in text form: all rows of the table as of the source position `lsn`. `naming`:
    see `seed_plan.Begin`; a target that was filled by other rules knows another table by this name."""

    schema: str
    table: str
    columns: list[str]
    lsn: int
    naming: str = ""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The source end can't copy the table, whenever it is tried; a person has to act."""

    schema: str
    table: str
    reason: str
    #: of the view in which it was looked for; 0: whenever
    lsn: int = 0


PartRequest = Anew | Refused


def encode_part(request: PartRequest) -> bytes:
    return msgspec.msgpack.encode(request)


def decode_part(data: bytes) -> PartRequest:
    try:
        return msgspec.msgpack.decode(data, type=PartRequest)  # type: ignore[no-any-return]  # a union
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LinkProtocol("a request about a copy of a table can't be read") from error


def encode_wanted(tables: list[tuple[str, str]]) -> bytes:
    """Schema and name of each; nothing for none."""
    return msgspec.msgpack.encode(tables) if tables else b""


def decode_wanted(data: bytes) -> list[tuple[str, str]]:
    if not data:
        return []
    try:
        return msgspec.msgpack.decode(data, type=list[tuple[str, str]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LinkProtocol("the list of tables to copy can't be read") from error
