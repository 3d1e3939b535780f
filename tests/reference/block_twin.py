"""The slow twin of cy_core/block.pyx and edge/block.py, version 1 of docs/formats/block.md: plain int and bytes.

Values are bit patterns: unsigned numbers of 1, 2, 4 or 8 bytes, whatever the signal's format says of them.
"""

from typing import NamedTuple

import zstandard

from edge.manifest import DecoderManifest, Signal

CONTENT_MAX_BYTES = 64 << 20


class Corrupt(Exception):
    """What block.md says a reader refuses."""


class Column(NamedTuple):
    signal: int
    constant: bool
    values: list[int]  # one where constant


class Group(NamedTuple):
    message: int
    times: list[int]
    columns: list[Column]


def width(signal: Signal) -> int:
    """Bytes of one value."""
    return next(size for size in (1, 2, 4, 8) if signal.length <= 8 * size)


# -- the block around the content ----------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    """Bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def seal(content: bytes, size: int | None = None) -> bytes:
    """A block with this content, which need not be a good one; size: what its header says instead of the truth."""
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(content)
    return seal_packed(packed, len(content) if size is None else size)


def seal_packed(packed: bytes, size: int) -> bytes:
    body = size.to_bytes(4, "little") + packed
    return b"BN\x01\x01" + crc32c(body).to_bytes(4, "little") + body


def unseal(block: bytes) -> bytes:
    """The content of a block. Raises Corrupt."""
    if len(block) < 12 or block[:4] != b"BN\x01\x01":
        raise Corrupt("no block of version 1 and coding 1")
    if int.from_bytes(block[4:8], "little") != crc32c(block[8:]):
        raise Corrupt("checksum")
    size = int.from_bytes(block[8:12], "little")
    if size > CONTENT_MAX_BYTES:
        raise Corrupt("size of the content")
    try:
        content = zstandard.ZstdDecompressor().decompressobj().decompress(block[12:])
    except zstandard.ZstdError as error:
        raise Corrupt(str(error)) from error
    if len(content) != size:
        raise Corrupt("not the size of the content")
    return content


# -- the content ---------------------------------------------------------------------------------------------


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise Corrupt("it ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = 0
        for place in range(10):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return value % 2**64
        raise Corrupt("a varint of over 10 bytes")

    def planes(self, count: int, size: int) -> list[int]:
        """count numbers of size bytes: the low bytes of all of them first."""
        data = self.take(count * size)
        return [int.from_bytes(data[i::count], "little") for i in range(count)] if count else []


def read(content: bytes, manifest: DecoderManifest) -> list[Group]:
    """Raises Corrupt."""
    reader = Reader(content)
    count = reader.varint()
    if count > reader.left:
        raise Corrupt("more groups than bytes")
    directory = [_read_directory(reader, manifest) for _ in range(count)]
    times, last = [], 0
    for _, rows, _ in directory:
        times.append(_read_times(reader, rows, last))
        last = times[-1][0]
    groups = [
        Group(message, its_times, [_read_column(reader, manifest, message, rows, *column) for column in columns])
        for (message, rows, columns), its_times in zip(directory, times, strict=True)
    ]
    if reader.left:
        raise Corrupt("bytes behind the end")
    return groups


def _read_directory(reader: Reader, manifest: DecoderManifest) -> tuple[int, int, list[tuple[int, bool]]]:
    message, rows = reader.varint(), reader.varint()
    if message >= len(manifest.messages):
        raise Corrupt("no such message")
    if not 1 <= rows <= min(reader.left, 0x7FFFFFFF):
        raise Corrupt("no rows, or more than bytes")
    signals = len(manifest.messages[message].signals)
    size = (signals + 7) // 8
    present = int.from_bytes(reader.take(size), "little")
    constant = int.from_bytes(reader.take(size), "little")
    if present >> signals:
        raise Corrupt("no such signal")
    return message, rows, [(i, bool(constant >> i & 1)) for i in range(signals) if present >> i & 1]


def _read_times(reader: Reader, rows: int, last: int) -> list[int]:
    times = [_int64(last + _unzigzag(reader.varint()))]
    size = reader.take(1)[0]
    if not 1 <= size <= 8:
        raise Corrupt("a width of times out of 1..8")
    for difference in reader.planes(rows - 1, size):
        times.append(_int64(times[-1] + _unzigzag(difference)))
    return times


def _read_column(
    reader: Reader, manifest: DecoderManifest, message: int, rows: int, signal: int, constant: bool
) -> Column:
    size = width(manifest.messages[message].signals[signal])
    values, last = [], 0
    for difference in reader.planes(1 if constant else rows, size):
        last = (last + difference) % 2 ** (8 * size)
        values.append(last)
    return Column(signal, constant, values)


def write(groups: list[Group], manifest: DecoderManifest) -> bytes:
    """The content that holds these groups."""
    out = _varint(len(groups))
    for group in groups:
        size = (len(manifest.messages[group.message].signals) + 7) // 8
        present = sum(1 << column.signal for column in group.columns)
        constant = sum(1 << column.signal for column in group.columns if column.constant)
        out += _varint(group.message) + _varint(len(group.times))
        out += present.to_bytes(size, "little") + constant.to_bytes(size, "little")
    last = 0
    for group in groups:
        out += _varint(_zigzag(_int64(group.times[0] - last)))
        last = group.times[0]
        differences = [_zigzag(_int64(b - a)) for a, b in zip(group.times, group.times[1:], strict=False)]
        size = max(1, (max(differences, default=0).bit_length() + 7) // 8)
        out += bytes([size]) + _planes(differences, size)
    for group in groups:
        for column in group.columns:
            size = width(manifest.messages[group.message].signals[column.signal])
            before = [0, *column.values]
            differences = [(b - a) % 2 ** (8 * size) for a, b in zip(before, column.values, strict=False)]
            out += _planes(differences, size)
    return out


def _planes(numbers: list[int], size: int) -> bytes:
    return bytes(number >> 8 * plane & 0xFF for plane in range(size) for number in numbers)


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _int64(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _unzigzag(value: int) -> int:
    return value // 2 if value % 2 == 0 else -(value // 2) - 1
