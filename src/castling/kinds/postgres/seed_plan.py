"""How the first copy is cut into chunks, and what is said about each over the bulk channel. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from castling.errors import LinkProtocol
from castling.kinds.postgres.catalog import Table

__all__ = [
    "Begin",
    "Chunk",
    "Finish",
    "Request",
    "Schema",
    "chunks",
    "decode_request",
    "encode_request",
    "likely_rows",
]

#: what a row takes in a table that nobody has analysed, bytes, about
_ROW_BYTES = 100


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """A first copy begins. `tables`: [schema, name] each; `create`: their definitions come first. `lock`:
    key of an advisory lock that the source end holds on the source; where it is held, there is the source.
    `naming`: digest of the rules by which the source's tables got the names that all requests use."""

    tables: list[tuple[str, str]]
    create: bool
    lock: int
    naming: str = ""


class Schema(msgspec.Struct, frozen=True, tag="schema"):
    """The body is an archive of pg_dump of a server of this version. `owners`: restore owners and grants."""

    server_version: int
    owners: bool = False


class Chunk(msgspec.Struct, frozen=True, tag="chunk"):
    """The body is COPY data of these columns. `binary`: its format."""

    schema: str
    table: str
    columns: list[str]
    number: int
    binary: bool


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """All chunks are there. `lsn`: the source position that the copy shows. `emptied`: schema, name and
    last possible position of the TRUNCATE of the tables that were emptied meanwhile (see `emptied`)."""

    lsn: int
    server_version: int
    emptied: list[tuple[str, str, int]] = []


Request = Begin | Schema | Chunk | Finish


def encode_request(request: Request) -> bytes:
    return msgspec.msgpack.encode(request)


def decode_request(data: bytes) -> Request:
    try:
        return msgspec.msgpack.decode(data, type=Request)  # type: ignore[no-any-return]  # a union
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LinkProtocol("a seed request can't be read") from error


def likely_rows(table: Table) -> int:
    """How many rows there are, about; by the size where the server has not counted yet."""
    return table.rows or table.bytes // _ROW_BYTES


def chunks(table: Table, pages: int, *, chunk_rows: int) -> Iterator[str]:
    """Conditions on the physical place of rows that cut the table into parts of about `chunk_rows`.

    They cover every row exactly once, whatever the estimates are worth: the last is open.
    """
    rows = likely_rows(table)
    if pages <= 0 or rows <= chunk_rows:
        yield ""
        return
    step = max(1, pages * chunk_rows // rows)
    starts = list(range(0, pages, step))
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        upper = "" if end is None else f" AND ctid < '({end},0)'"
        yield f"WHERE ctid >= '({start},0)'{upper}"
