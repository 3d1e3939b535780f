"""A fuzz target: blocks of summaries, their checksums made right, so that the form and the block inside are read."""

from pathlib import Path

from cy_core.crc32c import crc32c
from edge.errors import BlockCorrupt, InputError
from edge.summary import Reader
from tests.golden import make


def summaries(data: bytes, folder: Path) -> None:
    size = int.from_bytes(data[8:10], "little")
    inner = data[10 + size :]
    rest = data[8 : 10 + size] + inner[:4] + crc32c(inner[8:]).to_bytes(4, "little") + inner[8:]
    try:
        _, columns = Reader(make.manifest()).read(b"BN\2\3" + crc32c(rest).to_bytes(4, "little") + rest)
    except BlockCorrupt as error:
        raise InputError("block", str(error)) from error
    list(columns.groups())
