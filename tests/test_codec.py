"""Frames through the codec and back: bit for bit, whatever they are; and what becomes of damage."""

import functools
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.codec.raw import FRAMES_MAX, RawCodec
from cy_core.frames import Frames
from edge import block, pack, train
from edge import table as tables
from edge.errors import BlockCorrupt, InputError, TableMissing
from edge.logs import open_log
from edge.table import Field, Rule, Stream, Table
from simulator.vehicle.drive import write_log
from tests.golden import make as golden
from tests.reference import codec_twin

DATA = Path(os.environ.get("BORDNETZ_DATA", Path(__file__).parents[2] / "shared" / "data"))
EXTENDED, REMOTE, ERROR = 0x80000000, 0x40000000, 0x20000000
BUSES = ("can0", "vcan1", "straße")
VERSIONS = (2, 3)  # of blocks of frames


def recording(name: str) -> tuple[Frames, tuple[str, ...]]:
    if not (DATA / name).exists():
        pytest.skip(f"no recording {name}: set BORDNETZ_DATA")
    frames, log = Frames(), open_log(DATA / name)
    log.read(frames, 1 << 30)
    log.close()
    return frames, log.buses


def halves(name: str) -> tuple[Frames, Frames, tuple[str, ...]]:
    frames, buses = recording(name)
    middle = len(frames) // 2
    return frames.slice(0, middle), frames.slice(middle, len(frames)), buses


def packed_size(
    frames: Frames, buses: tuple[str, ...], table: Table, seconds: float, tick_us: int = 1, mixed: bool = False
) -> float:
    """Bytes a frame, with all headers; the blocks are read back and compared."""
    size = 0
    for start, end in pack.cut(frames, seconds):
        made = block.encode_frames(frames, buses, table, tick_us, start, end, mixed=mixed)
        size += len(made)
        again = Frames()
        assert block.decode_frames(made, again, block.Tables([table])) == buses
        if tick_us == 1:
            assert again.to_bytes() == frames.slice(start, end).to_bytes()
    return size / max(1, len(frames))


@st.composite
def traffic(draw: st.DrawFn) -> Frames:
    """A few streams, perhaps with a gateway to the next bus, now and then another one, in order or not."""
    made, latest = Frames(), dict[tuple[int, int, int], bytes]()
    time_us = draw(st.sampled_from([0, -5, 1_700_000_000_000_000, 1 << 53]))
    steps = draw(st.sampled_from([[0, 1, 7, 10_000], [50, 100, 1000], [0, 3, -20_000, 1 << 40]]))
    known = draw(st.lists(streams(), min_size=1, max_size=4))
    if draw(st.booleans()):
        known += [((bus + 1) % len(BUSES), *rest) for bus, *rest in known]
    for _ in range(draw(st.integers(1, 60))):
        time_us += draw(st.sampled_from(steps))
        bus, can_id, flags, length = draw(st.sampled_from(known) if draw(st.integers(0, 9)) else streams())
        last = latest.get((can_id, flags, length), bytes(length))
        data = draw(st.sampled_from([last, bytes(length), bytes(range(length)), draw(st.binary(min_size=64))[:length]]))
        latest[can_id, flags, length] = data
        made.append(time_us, bus, can_id, data, flags=flags)
    return made


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, int, int, int]:
    kind = draw(st.integers(0, 5))
    bus = draw(st.integers(0, len(BUSES) - 1))
    if kind == 2:  # of the tables here
        return draw(st.sampled_from([(0, 1, 0, 8), (1, 2, 0, 2), *((0, 16 + i, 0, 4) for i in range(6))]))
    if kind == 0:
        return (
            bus,
            draw(st.integers(0, 0x1FFFFFFF)) | EXTENDED,
            draw(st.sampled_from([4, 5, 7])),
            draw(st.integers(0, 64)),
        )
    if kind == 1:
        return bus, draw(st.sampled_from([REMOTE, ERROR, EXTENDED | REMOTE])) | 4, 0, draw(st.integers(0, 8))
    return bus, draw(st.integers(0, 0x7FF)), 0, draw(st.integers(0, 8))


SELECTED = (Field(0, 0, 0, 8), Field(0, 1, 40, 16), Field(0, 0, 24, 4), Field(0, 0, 28, 12), Field(0, 0, 40, 16))
TRIAL_TABLE = Table(
    (
        Stream("can0", 1, 0, 8, 10_000, True, SELECTED, (Rule(1, 7, 0, 8, 1, 3),)),
        Stream("vcan1", 1, 0, 8, 10_000, True, SELECTED, (Rule(1, 7, 0, 8, 1, 3),)),
        Stream("vcan1", 2, 0, 2, 0, False, (Field(0, 0, 0, 8), Field(0, 0, 12, 4)), (Rule(4, 1, 0, 4, 0x1D, 7),)),
    )
)


@settings(max_examples=150)
@given(traffic(), st.sampled_from([None, TRIAL_TABLE]), st.sampled_from(VERSIONS))
def test_frames_come_back_bit_for_bit(frames: Frames, table: Table | None, version: int) -> None:
    codec = RawCodec() if table is None else table.codec
    content = codec.encode(frames, BUSES, version=version)
    # A reader is another process: nothing that the writer left behind may help it.
    for reader in (RawCodec() if table is None else Table(table.streams, table.contexts).codec, codec):
        again = Frames()
        assert reader.decode(content, again, version=version) == BUSES
        assert again.to_bytes() == frames.to_bytes()


@functools.cache
def trained() -> Table:
    """With contexts, periods, selectors, and checksums of each kind that are mostly right."""
    kinds = [
        Rule(1, 3, 0, 8, 255, 3),
        Rule(2, 3, 0, 4, 1, 9),
        Rule(3, 0, 4, 4, 0, 5),
        Rule(3, 3, 0, 8, 0, 7),
        Rule(4, 1, 0, 8, 0x1D, 7),
        Rule(4, 3, 0, 4, 0x2F, 6),
    ]
    known: list[Stream] = list(TRIAL_TABLE.streams)
    for i, rule in enumerate(kinds):
        taken = ((1 << rule.width) - 1) << 8 * rule.byte + rule.shift
        known.append(Stream("can0", 16 + i, 0, 4, 500 * i, False, train._bytes_but(4, taken), (rule,)))
    frames, codec = Frames(), RawCodec(known, learning=True)
    for i in range(200):
        for stream in known:
            bus = BUSES.index(stream.bus)
            frames.append(
                1000 * i, bus, stream.can_id, (i * 0x01030507090B0D0F).to_bytes(16, "little")[: stream.length]
            )
    codec.encode(frames, BUSES, version=3)
    return Table(tuple(known), codec.models.dump())


@settings(max_examples=60, deadline=None)
@given(traffic(), st.booleans(), st.sampled_from(VERSIONS))
def test_the_slow_twin_reads_the_same_frames(frames: Frames, is_trained: bool, version: int) -> None:
    table = trained() if is_trained else Table()
    codec = RawCodec(table.streams, table.contexts)
    twin = codec_twin.Reader(codec.encode(frames, BUSES, version=version), table.streams, table.contexts, version)
    assert twin.frames() == list(frames)
    assert [name.decode() for name in twin.names] == list(BUSES)


def test_with_second_contexts_what_a_gateway_repeats_on_another_bus_costs_next_to_nothing() -> None:
    alone, repeated, noise = Frames(), Frames(), random.Random(1)
    for i in range(500):
        data = noise.randbytes(8)
        alone.append(10_000 * i, 0, 0x220, data)
        repeated.append(10_000 * i, 0, 0x220, data)
        repeated.append(10_000 * i + 300, 1, 0x220, data)
    once, twice = (len(RawCodec().encode(frames, BUSES, version=3)) for frames in (alone, repeated))
    assert twice - once < 0.1 * 8 * 500 < len(RawCodec().encode(repeated, BUSES)) - once


@settings(max_examples=60)
@given(traffic(), st.integers(1, 100_000))
def test_times_are_within_half_a_tick_and_the_rest_is_exact(frames: Frames, tick_us: int) -> None:
    again = Frames()
    RawCodec().decode(RawCodec().encode(frames, BUSES, tick_us), again)
    for got, true in zip(again, frames, strict=True):
        assert got[1:] == true[1:]
        assert abs(got[0] - true[0]) * 2 <= tick_us
        assert got[0] % tick_us == 0


def test_any_part_of_a_batch_can_be_a_block(tmp_path: Path) -> None:
    frames = drive(tmp_path, 2)[0]
    codec = RawCodec()
    for start, end in ((0, 1), (5, 6), (100, 900), (0, len(frames))):
        again = Frames()
        codec.decode(codec.encode(frames, BUSES, 1, start, end), again)
        assert again.to_bytes() == frames.slice(start, end).to_bytes()


def drive(folder: Path, seconds: float, seed: int = 1) -> tuple[Frames, tuple[str, ...]]:
    write_log(folder / f"{seed}.log", seconds, seed)
    frames, log = Frames(), open_log(folder / f"{seed}.log")
    log.read(frames, 1 << 30)
    log.close()
    return frames, log.buses


def test_a_checksum_that_is_wrong_stays_wrong() -> None:
    frames = Frames()
    stream = Stream("can0", 1, 0, 3, 0, False, (Field(0, 0, 0, 16),), (Rule(1, 2, 0, 8, 1, 9),))
    for i in range(300):
        right = bytes([i & 255, i >> 8, (i + (i >> 8) + 9) & 255])
        frames.append(1000 * i, 0, 1, right if i % 50 else right[:2] + b"\x00")
    codec = Table((stream,)).codec
    content, again = codec.encode(frames, ("can0",)), Frames()
    codec.decode(content, again)
    assert again.to_bytes() == frames.to_bytes()
    assert len(content) < len(RawCodec().encode(frames, ("can0",)))


def test_training_finds_checksums_fields_and_selectors() -> None:
    frames, noise = Frames(), random.Random(1)
    value = 30_000
    for i in range(3000):
        value = max(0, min(65535, value + noise.randint(-40, 40)))
        data = value.to_bytes(2, "big") + bytes([i & 15, 0])
        frames.append(10_000 * i, 0, 0x10, data + bytes([0x5A ^ data[0] ^ data[1] ^ data[2]]))
        page = i % 3
        frames.append(10_000 * i + 500, 0, 0x20, bytes([page, 40 * page, 255 - page, 7 * page + (i // 300)]))
    table = train.train([(frames, ("can0",))])
    by_id = {stream.can_id: stream for stream in table.streams}
    assert by_id[0x10].rules == (Rule(3, 4, 0, 8, 0, 0x5A),)
    assert Field(0, 1, 48, 16) in by_id[0x10].fields
    assert by_id[0x20].has_selector
    assert by_id[0x10].period_us == 10_000


def test_a_trained_table_makes_another_drive_of_the_same_car_smaller(tmp_path: Path) -> None:
    frames, buses = drive(tmp_path, 5, 2)
    for mixed in (False, True):
        table = train.train([drive(tmp_path, 10, 1)], mixed=mixed)
        cold = packed_size(frames, buses, Table(), 1, mixed=mixed)
        assert packed_size(frames, buses, table, 1, mixed=mixed) < 0.75 * cold


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_blocks_of_frames_of_every_version_are_read_and_made_the_same(version: int) -> None:
    stored = (golden.FOLDER / f"frames-{version}.block").read_bytes()
    frames = Frames()
    assert block.decode_frames(stored, frames) == golden.manifest().buses
    assert block.holds_frames(stored)
    assert frames.to_bytes() == golden.frames().to_bytes()
    assert block.encode_frames(frames, golden.manifest().buses, Table(), mixed=version == 3) == stored


def test_golden_blocks_of_signals_are_still_read_and_still_made() -> None:
    stored = (golden.FOLDER / "signals-2.block").read_bytes()
    columns = golden.columns()
    again = block.decode(stored, columns.plan)
    assert [row["times_us"] for row in golden.block_values(again)] == [
        row["times_us"] for row in golden.block_values(columns)
    ]
    made = block.decode(block.encode(columns), columns.plan)  # a group of one signal rides now: other bytes
    assert golden.block_values(made) == golden.block_values(again)
    stored = (golden.FOLDER / "rides-2.block").read_bytes()
    changes = golden.changes()
    found = golden.block_values(block.decode(stored, changes.plan))
    assert found == golden.block_values(changes) == json.loads((golden.FOLDER / "rides-2.json").read_bytes())
    assert block.encode(changes) == stored


# -- blocks of a given size ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), min_size=1, max_size=300), st.integers(0, 30_000), st.integers(-20, 20))
def test_what_fits_is_found_in_few_trials_whatever_the_items_cost(costs: list[int], limit: int, noise: int) -> None:
    calls = 0

    def encode(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return bytes(max(0, 20 + sum(costs[:count]) + noise * (count % 3)))

    count, made = block.fit(encode, len(costs), limit)
    assert calls <= 3 * len(costs).bit_length() + 2
    assert len(made) <= limit
    assert made == (encode(count) if count else b"")
    assert count == len(costs) or len(encode(count + 1)) > limit


@settings(max_examples=40, deadline=None)
@given(traffic(), st.integers(0, 600))
def test_a_block_of_frames_is_filled_to_its_limit(frames: Frames, limit: int) -> None:
    def encode(count: int) -> bytes:
        return block.encode_frames(frames, BUSES, TRIAL_TABLE, end=count)

    count, made = block.fit(encode, len(frames), limit)
    assert len(made) <= limit
    assert count == len(frames) or len(encode(count + 1)) > limit
    if count:
        again = Frames()
        block.decode_frames(made, again, block.Tables([TRIAL_TABLE]))
        assert again.to_bytes() == frames.slice(0, count).to_bytes()


# -- damage --------------------------------------------------------------------------------------------------


def test_any_flipped_or_cut_byte_of_a_block_is_a_clean_error(tmp_path: Path) -> None:
    frames, buses = drive(tmp_path, 0.5)
    made = block.encode_frames(frames, buses, Table())
    random_source = random.Random(2)
    for _ in range(300):
        damaged = bytearray(made)
        damaged[random_source.randrange(len(made))] ^= 1 << random_source.randrange(8)
        with pytest.raises(BlockCorrupt):
            block.decode_frames(bytes(damaged), Frames(), block.Tables())
    for size in range(0, len(made), 7):
        into = Frames()
        with pytest.raises(BlockCorrupt):
            block.decode_frames(made[:size], into, block.Tables())
        assert len(into) == 0


@settings(max_examples=200)
@given(st.data(), st.sampled_from(VERSIONS))
def test_bytes_that_pass_the_checksum_decode_or_are_refused(data: st.DataObject, version: int) -> None:
    frames = data.draw(traffic())
    codec = data.draw(st.sampled_from([RawCodec(), TRIAL_TABLE.codec]))
    content = bytearray(codec.encode(frames, BUSES, version=version))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=20))
    into = Frames()
    try:
        codec.decode(bytes(content), into, version=version)
    except ValueError:
        assert len(into) == 0
    assert len(into) <= FRAMES_MAX


@settings(max_examples=200)
@given(st.binary(max_size=300), st.sampled_from(VERSIONS))
def test_foreign_bytes_decode_or_are_refused(content: bytes, version: int) -> None:
    into = Frames()
    try:
        RawCodec().decode(content, into, version=version)
    except ValueError:
        assert len(into) == 0


def test_a_block_of_a_table_that_is_not_here_names_it(tmp_path: Path) -> None:
    frames, buses = drive(tmp_path, 0.5)
    made = block.encode_frames(frames, buses, TRIAL_TABLE)
    with pytest.raises(TableMissing, match=TRIAL_TABLE.sha256[:16]):
        block.decode_frames(made, Frames(), block.Tables())


def test_a_table_is_the_same_after_it_was_stored(tmp_path: Path) -> None:
    table = train.train([drive(tmp_path, 2)])
    table.save(tmp_path / "a.table")
    again = tables.load(tmp_path / "a.table")
    assert (again.sha256, again.streams, again.contexts) == (table.sha256, table.streams, table.contexts)


def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path) -> None:
    TRIAL_TABLE.save(tmp_path / "a.table")
    content = (tmp_path / "a.table").read_bytes()
    for damaged in (b"", content[:-3], content.replace(TRIAL_TABLE.sha256[:8].encode(), b"00000000"), b"x" + content):
        (tmp_path / "b.table").write_bytes(damaged)
        with pytest.raises(InputError, match=r"b\.table"):
            tables.load(tmp_path / "b.table")


@pytest.mark.parametrize(
    "stream",
    [
        Stream("can0", 1, 0, 8),
        Stream("can0", 1, 0, 1, 0, False, (Field(0, 0, 0, 16),)),
        Stream("can0", 1, 0, 1, 0, False, (Field(0, 0, 60, 8),)),
        Stream("can0", 1, 0, 2, 0, True, (Field(0, 0, 0, 16),)),
        Stream("can0", 1, 0, 1, 0, False, (), (Rule(9, 0, 0, 8, 1, 0),)),
        Stream("can0", 1, 0, 1, -1, False, (Field(0, 0, 0, 8),)),
    ],
)
def test_a_table_that_does_not_fit_its_payloads_is_refused(stream: Stream) -> None:
    with pytest.raises(ValueError, match="can0 1"):
        Table((stream,))


# -- recordings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("toyota_rav4_2017/rav4.log.gz", {(10, 1): 1.80, (1, 1): 2.0, (10, 1000): 1.22}),
        ("subaru_2021/subaru.log.gz", {(10, 1): 1.55, (10, 1000): 0.80}),
        ("j1939_truck_idle/truck.log.gz", {(10, 1): 1.40}),
    ],
)
def test_blocks_of_a_second_half_are_small_with_the_table_of_the_first(
    name: str, limits: dict[tuple[int, int], float]
) -> None:
    first, second, buses = halves(name)
    for tick_us in {tick for _, tick in limits}:
        table, both = (train.train([(first, buses)], tick_us, mixed=mixed) for mixed in (False, True))
        for (seconds, tick), limit in limits.items():
            if tick == tick_us:
                plain = packed_size(second, buses, table, seconds, tick_us)
                assert plain <= limit
                assert packed_size(second, buses, both, seconds, tick_us, mixed=True) < 0.97 * plain


@pytest.mark.parametrize("path", sorted(DATA.glob("*/*.log.gz")), ids=lambda path: path.name)
def test_a_recording_comes_back_as_it_was(path: Path) -> None:
    frames, buses = recording(f"{path.parent.name}/{path.name}")
    packed_size(frames, buses, Table(), 10)
