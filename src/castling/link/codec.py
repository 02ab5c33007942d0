"""zstd where it pays: what is sent is compressed, unless the link has room for it as it is (see `gauge`)
or that has just been seen to be useless.

`Packer` decides per batch. Data that did not shrink makes it send the next megabytes as
they are; then it compresses a small sample to see whether that still holds.
"""

from __future__ import annotations

from typing import Literal

import zstandard

from castling.errors import LinkProtocol

__all__ = ["PLAIN", "ZSTD", "Packer", "unpack"]

PLAIN = 0
ZSTD = 1

#: an answer above this share of the raw size does not pay
_PAYS_BELOW = 0.9
#: smaller than this is sent as it is: a single commit, which may be waited for
_SMALL = 1024
_SAMPLE = 16 << 10
_SKIP_FIRST = 4 << 20
_SKIP_MOST = 64 << 20
#: making one costs more than most calls of it
_DECOMPRESSOR = zstandard.ZstdDecompressor()


class Packer:
    """Compresses at `level` (0: never; "auto": at `AUTO`, while the link is scarce). One per direction;
    remembers whether it pays."""

    #: zstd's quickest level
    AUTO = 1

    def __init__(self, level: int | Literal["auto"]) -> None:
        self._is_auto = level == "auto"
        number = self.AUTO if level == "auto" else level
        self._compressor = zstandard.ZstdCompressor(level=number) if number else None
        self._skip = 0
        self._next_skip = _SKIP_FIRST
        #: how many bytes were given to zstd, samples included: what skipping saves is seen here
        self.tried_bytes = 0

    def pack(self, data: bytes, *, is_scarce: bool = True) -> tuple[int, bytes]:
        """Codec and bytes to send for `data`. `is_scarce`: what the link's gauge says."""
        if self._compressor is None or len(data) < _SMALL or (self._is_auto and not is_scarce):
            return PLAIN, data
        if self._skip > 0:
            self._skip -= len(data)
            if self._skip > 0:
                return PLAIN, data
            if not self._pays(data[:_SAMPLE]):
                self._useless()
                return PLAIN, data
        packed = self._compress(data)
        if len(packed) > len(data) * _PAYS_BELOW:
            if len(data) >= _SAMPLE:  # a small batch says nothing about the next
                self._useless()
            return PLAIN, data
        self._next_skip = _SKIP_FIRST
        return ZSTD, packed

    def _pays(self, sample: bytes) -> bool:
        return len(self._compress(sample)) <= len(sample) * _PAYS_BELOW

    def _compress(self, data: bytes) -> bytes:
        assert self._compressor is not None
        self.tried_bytes += len(data)
        return self._compressor.compress(data)

    def _useless(self) -> None:
        self._skip = self._next_skip
        self._next_skip = min(self._next_skip * 2, _SKIP_MOST)


def unpack(data: memoryview, codec: int, length: int, *, limit: int) -> bytes | memoryview:
    """The `length` bytes that were packed into `data`, which may be a part of it; LinkProtocol when it does
    not hold exactly those.

    Nothing is allocated for more than `limit` bytes, whatever the data says of itself.
    """
    if length > limit:
        raise LinkProtocol(f"{length} bytes are announced, more than {limit}")
    if codec == PLAIN:
        if len(data) != length:
            raise LinkProtocol(f"{length} bytes are announced and {len(data)} came")
        return data
    if codec != ZSTD:
        raise LinkProtocol(f"codec {codec} is not known")
    try:
        if zstandard.frame_content_size(data) != length:  # zstd allocates by what the frame says
            raise LinkProtocol("a compressed body has another size than announced")
        found = _DECOMPRESSOR.decompress(
            data, max_output_size=length, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise LinkProtocol(f"a compressed body can't be read: {error}") from error
    if len(found) != length:
        raise LinkProtocol("a compressed body has another size than announced")
    return found
