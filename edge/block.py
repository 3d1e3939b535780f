"""A block: many samples or frames, compressed, decodable alone given the manifest and table it names.

    "BN" | version | coding | CRC-32C of all that follows | ...

    version 1, coding 1     size of the content | columns as differences, under zstd: the fallback and the reference
    version 2, coding 1     name of the model table | frames, bit for bit, by cy_core/codec
    version 3, coding 1     the same with second contexts: smaller, and slower
    version 2, coding 2     name of the model table | signals, by cy_core/codec

docs/formats/block.md gives every byte. Blocks of every version ever released stay readable.
"""

import struct
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence

from cy_core.columns import Columns
from cy_core.crc32c import crc32c
from cy_core.frames import Frames
from cy_core.plan import Plan
from edge.errors import BlockCorrupt, TableMissing
from edge.table import HASH_BYTES, Table

HEAD = struct.Struct("<2sBBI")
MAGIC = b"BN"
COLUMNS = (1, 1)  # version and coding
FRAMES = (2, 1)
MIXED_FRAMES = (3, 1)
SIGNALS = (2, 2)
# A block is some ten thousand frames; nothing honest comes near this.
CONTENT_MAX_BYTES = 64 << 20

JOINED_FRAMES = 16_384  # the decoder begins new groups behind so many
MOST_UNITS = (1 << 30) - 1

_threads = threading.local()


class Tables:
    """The model tables that are here, by name. A table holds scratch memory: use one in each thread."""

    def __init__(self, tables: Iterable[Table] = ()) -> None:
        self._tables = {table.name: table for table in tables}

    def __getitem__(self, name: bytes) -> Table:
        """Raises TableMissing."""
        try:
            return self._tables[name]
        except KeyError:
            raise TableMissing(name.hex()) from None


def _cold() -> Table:
    """The table that knows nothing, of this thread."""
    try:
        return _threads.cold  # type: ignore[no-any-return]
    except AttributeError:
        _threads.cold = Table()
        return _threads.cold  # type: ignore[no-any-return]


# -- a block of a given size ---------------------------------------------------------------------------------


def fit(encode: Callable[[int], bytes], count: int, limit_bytes: int) -> tuple[int, bytes]:
    """Trial encoding: (how many of count items fit into limit_bytes, their block); (0, b"") if not even one does.

    encode(n), 1 <= n <= count, gives the block of the first n items: frames, samples, whatever it cuts by; it may
    have other things in it that count, such as an envelope. The block fits, and with one item more it would not;
    larger blocks are not looked at, so a rare one of them may fit as well (sizes mostly grow, but not always).
    encode is called about nine times, never more than 3 log2(count) + 2 times.

        limit = units * UNIT_BYTES - envelope
        taken, block = fit(lambda n: encode_frames(frames, buses, table, tick_us, start, start + n), count, limit)
    """
    if count < 1:
        return 0, b""
    fits, found, fits_bytes = 0, b"", 0
    over, block = count, encode(count)
    if len(block) <= limit_bytes:
        return count, block
    over_bytes, bad = len(block), 0  # bad: guesses in a row that left more than half
    while (span := over - fits) > 1:
        at = span // 2 if bad == 2 else span * max(0, limit_bytes - fits_bytes) // max(1, over_bytes - fits_bytes)
        at = min(max(fits + at, fits + 1), over - 1)
        block = encode(at)
        if len(block) <= limit_bytes:
            fits, found, fits_bytes = at, block, len(block)
        else:
            over, over_bytes = at, len(block)
        bad = bad + 1 if bad < 2 and 2 * (over - fits) > span else 0
    return fits, found


# -- frames --------------------------------------------------------------------------------------------------


def encode_frames(
    frames: Frames,
    buses: Sequence[str],
    table: Table,
    tick_us: int = 1,
    start: int = 0,
    end: int = -1,
    *,
    mixed: bool = False,
) -> bytes:
    """A block of the frames start..end-1, times rounded to multiples of tick_us.

    buses: names by number. mixed: 4 to 20 % smaller, for over half as much time again. Raises ValueError: no frames,
    too many (FRAMES_MAX), or a bus without a name.
    """
    form = MIXED_FRAMES if mixed else FRAMES
    content = table.codec.encode(frames, buses, tick_us, start, end, version=form[0])
    return _seal(form, table.name + content)


def decode_frames(block: bytes, into: Frames, tables: Tables | None = None) -> tuple[str, ...]:
    """Append the frames of a block; the names of their buses. Raises BlockCorrupt, TableMissing."""
    form = _open(block)
    if form not in (FRAMES, MIXED_FRAMES):
        raise BlockCorrupt("the block holds no frames")
    table, content = _content(block, tables)
    try:
        return table.codec.decode(content, into, version=form[0])
    except ValueError as error:
        raise BlockCorrupt(f"the block does not decode: {error}") from error


def holds_frames(block: bytes) -> bool:
    """Frames or signals? Raises BlockCorrupt."""
    return _open(block) in (FRAMES, MIXED_FRAMES)


# -- signals -------------------------------------------------------------------------------------------------


def encode(
    columns: Columns,
    selection: bytes | bytearray | None = None,
    *,
    table: Table | None = None,
    max_errors: Sequence[float] | None = None,
    kept_steps: "array[int] | None" = None,
    tick_us: int = 1,
    tolerance_us: int = 0,
) -> bytes:
    """A block of these columns; selection has one byte for each signal of the manifest, not 0 for those to keep.

    table: makes small blocks smaller; who decodes needs it. max_errors: of each signal of the manifest, in its unit:
    no value is wrong by more; 0 and floats are exact. kept_steps: of each signal the step that a reduction has left its
    values at (odd, in raw units; 1: none): sent as multiples, and exactly, also those that are none. tick_us: times are
    rounded to multiples. tolerance_us: not 0: times are wrong by that at most. Raises ValueError: one of these does not
    fit.
    """
    known = table or _cold()
    steps = kept_steps if max_errors is None else _steps(columns.plan, max_errors)
    if columns.frames > JOINED_FRAMES:
        from cy_core.codec.join import join  # here, because a vehicle's blocks are hardly ever that long

        columns = join(columns)
    try:
        content = known.signals(columns.plan).encode(
            columns, selection, steps, tick_us, tolerance_us, max_errors is None
        )
    except OverflowError:
        return encode_columns(columns, selection)  # more than the codec takes at once
    return _seal(SIGNALS, known.name + content)


def encode_columns(columns: Columns, selection: bytes | bytearray | None = None) -> bytes:
    """The same in the form of version 1, exact: differences in columns, under zstd."""
    import zstandard  # here, as in _decode_columns: a vehicle hardly ever needs it, and it takes memory

    from cy_core.block import lay_out

    content = lay_out(columns, selection)
    compressor = zstandard.ZstdCompressor(level=3, write_content_size=False, write_checksum=False)
    return _seal(COLUMNS, struct.pack("<I", len(content)) + compressor.compress(content))


def decode(block: bytes, plan: Plan, into: Columns | None = None, tables: Tables | None = None) -> Columns:
    """The columns in a block.

    Raises BlockCorrupt: cut, flipped, of another format, or of another manifest; TableMissing.
    """
    return decode_bounded(block, plan, into, tables)[0]


def decode_bounded(
    block: bytes, plan: Plan, into: Columns | None = None, tables: Tables | None = None
) -> tuple[Columns, int, dict[int, int]]:
    """The columns in a block, and how exact they are: times within so many microseconds, signals (by place in the
    manifest; exact where not named) within so many raw units. Raises as decode does.
    """
    form = _open(block)
    if form == COLUMNS:
        return _decode_columns(block, plan, into), 0, {}
    if form != SIGNALS:
        raise BlockCorrupt("the block holds frames, not signals")
    table, content = _content(block, tables)
    codec = table.signals(plan)
    try:
        columns = codec.decode(content, into)
        return columns, codec.time_error_us, {place: step // 2 for place, step in codec.steps.items()}
    except ValueError as error:
        raise BlockCorrupt(f"the block does not decode: {error}") from error


def _steps(plan: Plan, max_errors: Sequence[float]) -> "array[int]":
    """Raw units, odd: the nearest multiple of 2n + 1 is n units away at most."""
    signals = [signal for _, _, signal in plan.manifest.names()]
    return array(
        "I",
        [
            2 * min(int(error / abs(signal.factor)), MOST_UNITS) + 1 if error > 0 and signal.factor else 1
            for error, signal in zip(max_errors, signals, strict=True)
        ],
    )


def _decode_columns(block: bytes, plan: Plan, into: Columns | None) -> Columns:
    import zstandard

    from cy_core.block import read

    if len(block) < HEAD.size + 4:
        raise BlockCorrupt(f"a block of {len(block)} bytes has no content")
    (size,) = struct.unpack_from("<I", block, HEAD.size)
    if size > CONTENT_MAX_BYTES:
        raise BlockCorrupt(f"the block says that it holds {size} bytes; {CONTENT_MAX_BYTES} are allowed")
    try:
        packed = block[HEAD.size + 4 :]
        # A size that zstd itself announces would be believed before max_output_size, up to any number.
        if zstandard.frame_content_size(packed) not in (-1, size):
            raise BlockCorrupt("the block is not of the size that its header says")
        content = zstandard.ZstdDecompressor().decompress(packed, max_output_size=size, allow_extra_data=False)
        if len(content) != size:
            raise BlockCorrupt(f"the block holds {len(content)} bytes, not {size}")
        return read(content, plan, into)
    except (zstandard.ZstdError, ValueError) as error:
        raise BlockCorrupt(f"the block does not decode: {error}") from error


# -- what is around the content ------------------------------------------------------------------------------


def _seal(form: tuple[int, int], rest: bytes) -> bytes:
    return HEAD.pack(MAGIC, *form, crc32c(rest)) + rest


def _open(block: bytes) -> tuple[int, int]:
    """Version and coding of a block whose checksum is right. Raises BlockCorrupt."""
    if len(block) < HEAD.size:
        raise BlockCorrupt(f"a block of {len(block)} bytes has no header")
    magic, version, coding, crc = HEAD.unpack_from(block)
    if magic != MAGIC or (version, coding) not in (COLUMNS, FRAMES, MIXED_FRAMES, SIGNALS):
        raise BlockCorrupt(f"not a block of a known format: starts with {block[:4].hex()}")
    if crc32c(memoryview(block)[HEAD.size :]) != crc:
        raise BlockCorrupt("the block does not match its checksum")
    return version, coding


def _content(block: bytes, tables: Tables | None) -> tuple[Table, memoryview]:
    rest = memoryview(block)[HEAD.size :]
    if len(rest) < HASH_BYTES:
        raise BlockCorrupt(f"a block of {len(block)} bytes names no model table")
    name, content = bytes(rest[:HASH_BYTES]), rest[HASH_BYTES:]
    if name == bytes(HASH_BYTES):
        return _cold(), content
    if tables is None:
        raise TableMissing(name.hex())
    return tables[name], content
