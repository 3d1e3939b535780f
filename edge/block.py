"""A block: many samples, compressed, decodable alone given the manifest. docs/formats/block.md gives every byte.

    "BN" | version | coding | CRC-32C of all that follows | size of the content | content, compressed

The coding is behind this one file: what is stored today as differences in columns under zstd can become any
other coding, and blocks of every version ever released stay readable.
"""

import struct

import zstandard

from cy_core.block import lay_out, read
from cy_core.columns import Columns
from cy_core.crc32c import crc32c
from cy_core.plan import Plan
from edge.errors import BlockCorrupt

HEADER = struct.Struct("<2sBBII")
MAGIC = b"BN"
VERSION = 1
ZSTD_COLUMNS = 1
# A block is some ten thousand frames; nothing honest comes near this.
CONTENT_MAX_BYTES = 64 << 20

_compressor = zstandard.ZstdCompressor(level=3, write_content_size=False, write_checksum=False)


def encode(columns: Columns, selection: bytes | bytearray | None = None) -> bytes:
    """A block of these columns; selection has one byte for each signal of the manifest, not 0 for those to keep."""
    content = lay_out(columns, selection)
    packed = _compressor.compress(content)
    crc = crc32c(packed, crc32c(struct.pack("<I", len(content))))
    return HEADER.pack(MAGIC, VERSION, ZSTD_COLUMNS, crc, len(content)) + packed


def decode(block: bytes, plan: Plan, into: Columns | None = None) -> Columns:
    """The columns in a block. Raises BlockCorrupt: cut, flipped, of another format, or of another manifest."""
    if len(block) < HEADER.size:
        raise BlockCorrupt(f"a block of {len(block)} bytes has no header")
    magic, version, coding, crc, size = HEADER.unpack_from(block)
    if magic != MAGIC or version != VERSION or coding != ZSTD_COLUMNS:
        raise BlockCorrupt(f"not a block of a known format: starts with {block[:4].hex()}")
    if crc32c(block[8:]) != crc:
        raise BlockCorrupt("the block does not match its checksum")
    if size > CONTENT_MAX_BYTES:
        raise BlockCorrupt(f"the block says that it holds {size} bytes; {CONTENT_MAX_BYTES} are allowed")
    try:
        packed = block[HEADER.size :]
        # A size that zstd itself announces would be believed before max_output_size, up to any number.
        if zstandard.frame_content_size(packed) not in (-1, size):
            raise BlockCorrupt("the block is not of the size that its header says")
        content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size, allow_extra_data=False)
        if len(content) != size:
            raise BlockCorrupt(f"the block holds {len(content)} bytes, not {size}")
        return read(content, plan, into)
    except (zstandard.ZstdError, ValueError) as error:
        raise BlockCorrupt(f"the block does not decode: {error}") from error
