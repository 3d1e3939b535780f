"""The collector's line, step by step, with a real outbox and a source that the test holds in its hand."""

import collections
from pathlib import Path

import pytest

from cy_core.frames import Frames
from edge import block
from edge.campaign import Campaign, SignalRule, compile_campaign, compile_campaigns
from edge.collector import Collector
from edge.decoder import Decoder
from edge.errors import InputError, OutboxFull
from edge.manifest import DecoderManifest, Message, Signal
from edge.message import Block, Clock
from edge.outbox import MAX_BODY_BYTES, NewRecord, Outbox
from edge.source import open_source

SPEED = Signal("Speed", 0, 16)
GEAR = Signal("Gear", 16, 3)
MANIFEST = DecoderManifest(
    ("can0", "can1"),
    (
        Message("can0", 1, "Motion", 8, signals=(SPEED, GEAR)),
        Message("can1", 2, "Cells", 64, signals=tuple(Signal(f"Cell{n}", 64 * n, 64) for n in range(8))),
    ),
)


class HandSource:
    """Gives what the test puts into it."""

    name = "hand"
    live = False
    overflowed = 0
    dropped: dict[str, int] = {}  # noqa: RUF012
    unparsed_lines = 0
    problem = ""
    clock = Clock()

    def __init__(self) -> None:
        self.position = 0
        self.missing = 0
        self.waiting: list[tuple[int, int, int, bytes]] = []
        self.ended = False

    def put(self, *frames: tuple[int, int, int, bytes]) -> "HandSource":
        self.waiting.extend(frames)
        return self

    def read(self, frames: Frames, limit: int, timeout_s: float) -> bool:
        for time_us, bus, can_id, data in self.waiting[:limit]:
            frames.append(time_us, bus, can_id, data, flags=4 if len(data) > 8 else 0)
        self.position += len(self.waiting[:limit])
        del self.waiting[:limit]
        return bool(self.waiting) or not self.ended

    def cursor(self) -> bytes:
        return str(self.position).encode()

    def resume(self, cursor: bytes) -> None:
        self.position = int(cursor)

    def close(self) -> None:
        pass


def motion(time_us: int) -> tuple[int, int, int, bytes]:
    return time_us, 0, 1, time_us.to_bytes(8, "little")


def stored(outbox: Outbox) -> list[tuple[str, Block]]:
    return [(record.stream, Block.decode(record.body)) for record in outbox.peek(1 << 30, 1000)]


def times(blocks: list[tuple[str, Block]], stream: str = "all") -> list[int]:
    plan = Decoder(MANIFEST).plan
    return [
        time_us
        for name, stored_block in blocks
        if name == stream
        for group in block.decode(stored_block.data, plan).groups()
        for time_us in group.times.tolist()
    ]


def everything(collector: Collector, durable_s: float = 60, block_frames: int = 100) -> Collector:
    selection = compile_campaign("all", Campaign({"*": SignalRule()}), MANIFEST)
    collector.select([selection], durable_s, block_frames)
    return collector


LONG = DecoderManifest(
    ("can0",),
    (Message("can0", 0x18FECA00, "DM1", 11, extended=True, signals=(Signal("Last", 80, 8),), protocol="j1939"),),
)


def broadcast(time_us: int, last: int) -> list[tuple[int, int, int, bytes]]:
    """The three frames of a BAM session (SAE J1939-21) with eleven bytes of DM1."""
    announce = bytes([32, 11, 0, 2, 255, 0xCA, 0xFE, 0])
    first, second = bytes([1, *range(7)]), bytes([2, 7, 8, 9, last, 255, 255, 255])
    return [
        (time_us, 0, 0x9CECFF00, announce),
        (time_us + 50_000, 0, 0x9CEBFF00, first),
        (time_us + 100_000, 0, 0x9CEBFF00, second),
    ]


@pytest.fixture
def outbox(tmp_path: Path) -> collections.abc.Iterator[Outbox]:
    with Outbox(tmp_path / "outbox") as opened:
        yield opened


def test_a_block_is_stored_when_it_is_full_and_not_before(outbox: Outbox) -> None:
    source = HandSource().put(*(motion(n) for n in range(5)))
    collector = everything(Collector(source, Decoder(MANIFEST), outbox), block_frames=10)
    assert collector.held_s == 0
    collector.step()
    assert stored(outbox) == []
    assert collector.held_s > 0
    source.put(*(motion(n) for n in range(5, 12)))
    collector.step()
    assert times(stored(outbox)) == list(range(10))
    assert collector.held_s == 0


def test_a_frame_waits_no_longer_than_durable_s(outbox: Outbox) -> None:
    source = HandSource().put(motion(1))
    collector = everything(Collector(source, Decoder(MANIFEST), outbox), durable_s=0)
    collector.step()
    assert times(stored(outbox)) == [1]


def test_the_cursor_is_stored_with_the_frames_and_a_new_collector_goes_on_there(outbox: Outbox) -> None:
    source = HandSource().put(*(motion(n) for n in range(7)))
    everything(Collector(source, Decoder(MANIFEST), outbox), durable_s=0).step()
    again = HandSource()
    assert Collector(again, Decoder(MANIFEST), outbox).source.position == 7


def test_coverage_says_which_frames_a_block_is_made_from_and_how_many_are_missing(outbox: Outbox) -> None:
    source = HandSource().put(*(motion(n) for n in range(3)))
    collector = everything(Collector(source, Decoder(MANIFEST), outbox), durable_s=0)
    collector.step()
    source.position, source.missing = 10, 7
    source.put(motion(99))
    collector.step()
    covered = [stored_block.coverage for _, stored_block in stored(outbox)]
    assert [(c.source, c.first, c.end, c.missing) for c in covered] == [("hand", 0, 3, 0), ("hand", 10, 11, 7)]
    assert source.missing == 0


def test_each_campaign_gets_its_own_stream_with_its_signals_and_priority(outbox: Outbox) -> None:
    source = HandSource().put(motion(1))
    collector = Collector(source, Decoder(MANIFEST), outbox)
    speed = compile_campaign("speed", Campaign({"Motion.Speed": SignalRule()}, priority=1), MANIFEST)
    cells = compile_campaign("cells", Campaign({"can1.*": SignalRule()}, priority=7), MANIFEST)
    collector.select([cells, speed], 0, 100)
    collector.step()
    assert [(record.priority, record.stream) for record in outbox.peek(1 << 20, 10)] == [(1, "speed")]
    blocks = stored(outbox)
    assert [stored_block.counters.samples for _, stored_block in blocks] == [1]
    [group] = block.decode(blocks[0][1].data, Decoder(MANIFEST).plan).groups()
    assert [index for index, _, _ in group.columns] == [0]


def test_frames_before_a_change_of_campaigns_are_stored_as_they_were_selected_then(outbox: Outbox) -> None:
    source = HandSource().put(motion(1))
    collector = everything(Collector(source, Decoder(MANIFEST), outbox))
    collector.step()
    collector.select([], 1, 1)
    assert times(stored(outbox)) == [1]


def test_a_block_too_large_for_a_record_is_cut_in_halves_that_cover_the_same_frames(outbox: Outbox) -> None:
    import random

    noise = random.Random(1)
    source = HandSource().put(*((n, 1, 2, noise.randbytes(64)) for n in range(6000)))
    collector = everything(Collector(source, Decoder(MANIFEST), outbox), block_frames=6000)
    collector.step()
    blocks = stored(outbox)
    assert len(blocks) > 1
    assert all(len(record.body) <= MAX_BODY_BYTES for record in outbox.peek(1 << 30, 100))
    covered = [(stored_block.coverage.first, stored_block.coverage.end) for _, stored_block in blocks]
    assert [first for first, _ in covered] == [0, *(end for _, end in covered[:-1])]
    assert times(blocks) == list(range(6000))


def test_frames_that_no_message_describes_are_counted(outbox: Outbox) -> None:
    source = HandSource().put(
        (1, 0, 99, b""), (2, 0, 1, b"\x01\x02"), (3, 0, 0x40000001, b""), (4, 0, 0x20000004, bytes(8))
    )
    collector = everything(Collector(source, Decoder(MANIFEST), outbox), durable_s=0)
    collector.step()
    [(_, stored_block)] = stored(outbox)
    counters = stored_block.counters
    assert (counters.samples, counters.unknown_frames, counters.short_frames) == (1, 1, 1)
    assert (counters.remote_frames, counters.error_frames) == (1, 1)


def test_an_outbox_that_is_full_for_a_while_costs_nothing(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HandSource().put(motion(1))
    collector = everything(Collector(source, Decoder(MANIFEST), outbox), durable_s=0)
    real, failures = outbox.append, iter([OutboxFull("no room"), OutboxFull("no room")])

    def append(records: list[NewRecord], cursor: tuple[str, bytes] | None = None) -> list[int]:
        for failure in failures:
            raise failure
        return real(records, cursor)

    monkeypatch.setattr(outbox, "append", append)
    monkeypatch.setattr("edge.collector.RETRY_S", 0)
    collector.step()
    assert times(stored(outbox)) == [1]


def test_a_source_that_ends_leaves_nothing_unstored(outbox: Outbox) -> None:
    source = HandSource().put(*(motion(n) for n in range(25)))
    source.ended = True
    collector = everything(Collector(source, Decoder(MANIFEST), outbox), block_frames=10)
    collector.run(lambda: False)
    assert collector.finished
    assert times(stored(outbox)) == list(range(25))


def test_without_a_campaign_a_recording_waits(outbox: Outbox) -> None:
    source = HandSource().put(motion(1))
    collector = Collector(source, Decoder(MANIFEST), outbox)
    stops = iter([False, True])
    collector.run(lambda: next(stops))
    assert source.waiting == [motion(1)]


def test_without_a_campaign_a_live_bus_is_known_and_the_first_campaign_begins_at_its_own_time(outbox: Outbox) -> None:
    stored_first: list[int] = []
    source = HandSource().put(*(motion(n) for n in range(5)))
    source.live, source.missing = True, 3
    collector = Collector(source, Decoder(MANIFEST), outbox, lambda: stored_first.append(source.position))
    stops = iter([False, False, True])
    collector.run(lambda: next(stops))
    assert collector.line.traffic.bus(0).frames == 5
    assert len(outbox.peek(1 << 30, 10)) == 0
    assert stored_first == []
    everything(collector, durable_s=0)
    source.put(*(motion(n) for n in range(5, 8)))
    collector.step()
    assert times(stored(outbox)) == [5, 6, 7]
    ((_, kept),) = stored(outbox)
    assert (kept.coverage.first, kept.coverage.end, kept.coverage.missing) == (5, 8, 0)
    assert stored_first == [8]


# -- campaigns


@pytest.mark.parametrize(
    ("name", "campaign", "said"),
    [
        ("a", Campaign({"Motion.Sped": SignalRule()}), "did you mean Motion.Speed?"),
        ("a", Campaign({"can0.Cells.*": SignalRule()}), "matches no signal"),
        ("a", Campaign({}), "selects nothing"),
        ("a", Campaign({"*": SignalRule()}, priority=10), "0 .first. to 9"),
        ("a b", Campaign({"*": SignalRule()}), "no usable name"),
    ],
)
def test_a_campaign_that_cannot_run_is_refused_with_the_way_out(name: str, campaign: Campaign, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compile_campaign(name, campaign, MANIFEST)


def test_a_bad_campaign_does_not_stop_the_others() -> None:
    good, bad = Campaign({"*": SignalRule()}), Campaign({"Nothing.*": SignalRule()})
    selections, refused = compile_campaigns({"good": good, "bad": bad}, MANIFEST)
    assert [selection.stream for selection in selections] == ["good"]
    assert list(refused) == ["bad"]


# -- sources


@pytest.mark.parametrize("read", range(10))
def test_a_message_in_segments_that_was_half_there_at_a_kill_is_whole_after_it(outbox: Outbox, read: int) -> None:
    frames = [frame for n in range(3) for frame in broadcast(n * 1_000_000, n)]
    selection = compile_campaign("all", Campaign({"DM1.Last": SignalRule()}), LONG)

    def collect(source: HandSource) -> None:
        collector = Collector(source, Decoder(LONG), outbox)
        collector.select([selection], 60, 100)
        while source.waiting:
            collector.step()
            collector.store(last=source.ended)

    collect(HandSource().put(*frames[:read]))  # and is not heard of again
    rest = HandSource().put(*frames[read:])
    rest.ended = True
    collect(rest)
    plan = Decoder(LONG).plan
    groups = [group for _, each in stored(outbox) for group in block.decode(each.data, plan).groups()]
    assert [time_us for group in groups for time_us in group.times.tolist()] == [100_000, 1_100_000, 2_100_000]


def test_a_replay_resumes_exactly_behind_its_cursor(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"({n}.0) can0 001#{n:02X}\nno frame\n" for n in range(20)))
    first, frames = open_source(f"replay:{log}", ("can0",)), Frames()
    first.read(frames, 8, 0)
    cursor = first.cursor()
    second = open_source(f"replay:{log}", ("can0",))
    second.resume(cursor)
    assert second.position == 8
    while second.read(frames, 5, 0):
        pass
    assert [frame[0] for frame in frames] == [n * 1_000_000 for n in range(20)]
    assert first.unparsed_lines + second.unparsed_lines == 20


def test_another_recording_of_the_same_name_is_another_source(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("(1.0) can0 001#00\n")
    before = open_source(f"replay:{log}", ()).name
    log.write_text("(1.0) can0 001#01\n")
    assert open_source(f"replay:{log}", ()).name != before


def test_a_replay_at_a_pace_gives_no_frame_before_its_time(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("(1.000000) can0 001#00\n(1.050000) can0 001#01\n(1.050000) can0 001#02\n")
    source, frames = open_source(f"replay:{log}?speed=2", ("can0",)), Frames()
    source.read(frames, 10, 0)
    assert len(frames) == 1
    while source.read(frames, 10, 0.1):
        pass
    assert [frame[4] for frame in frames] == [b"\x00", b"\x01", b"\x02"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("tape:/dev/null", "is of no known kind"),
        ("replay:/nowhere.log", "no such file"),
        ("replay:/nowhere.log?speed=fast", "speed is not a number"),
        ("replay:/nowhere.log?spede=1", "unknown option 'spede'"),
    ],
)
def test_a_source_that_cannot_be_is_refused_in_one_line(address: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_source(address, ())


@pytest.mark.parametrize("block_frames", [1, 2, 3, 4, 100])
def test_a_message_in_several_frames_is_one_sample_wherever_blocks_end(outbox: Outbox, block_frames: int) -> None:
    source = HandSource().put(*(frame for n in range(5) for frame in broadcast(n * 1_000_000, n)))
    source.ended = True
    collector = Collector(source, Decoder(LONG), outbox)
    collector.select([compile_campaign("all", Campaign({"*.Last": SignalRule()}), LONG)], 60, block_frames)
    collector.run(lambda: False)
    found = [
        (time_us, value)
        for _, stored_block in stored(outbox)
        for group in block.decode(stored_block.data, Decoder(LONG).plan).groups()
        for _, _, values in group.columns
        for time_us, value in zip(group.times, values.tolist() * len(group.times), strict=False)
    ]
    assert found == [(n * 1_000_000 + 100_000, n) for n in range(5)]
    assert sum(stored_block.counters.unknown_frames for _, stored_block in stored(outbox)) == 0


def test_a_window_holds_messages_that_began_before_it(outbox: Outbox) -> None:
    both = DecoderManifest(("can0",), (MANIFEST.messages[0], *LONG.messages))
    frames = [frame for n in range(3) for frame in broadcast(n * 1_000_000, n)]
    source = HandSource().put(*sorted([*frames, *(motion(n) for n in (0, 1_100_001, 3_000_000))]))
    source.ended = True
    collector = Collector(source, Decoder(both), outbox)
    campaign = Campaign(
        {"*.Last": SignalRule()}, when="Motion.Speed == 51425", before_s=0.01, after_s=0.01
    )  # 1,100,001
    collector.select([compile_campaign("event", campaign, both)], 60, 100)
    collector.run(lambda: False)
    assert sum(stored_block.counters.samples for _, stored_block in stored(outbox)) == 1


@pytest.mark.parametrize("block_frames", [1, 2, 3, 4, 5, 100])
def test_an_event_begins_at_the_last_frame_of_a_message_in_several_wherever_blocks_end(
    outbox: Outbox, block_frames: int
) -> None:
    both = DecoderManifest(("can0",), (MANIFEST.messages[0], *LONG.messages))
    frames = [frame for n in range(3) for frame in broadcast(n * 1_000_000, n)]
    around = [motion(n) for n in (1_049_999, 1_050_000, 1_099_999, 1_100_000, 1_150_000, 1_150_001)]
    source = HandSource().put(*sorted([*frames, *around]))
    source.ended = True
    collector = Collector(source, Decoder(both), outbox)
    campaign = Campaign({"Motion.Speed": SignalRule()}, when="DM1.Last == 1", before_s=0.05, after_s=0.05)
    collector.select([compile_campaign("event", campaign, both)], 60, block_frames)
    collector.run(lambda: False)
    assert collector.line.streams["event"].tally.events == 1
    assert sum(stored_block.counters.samples for _, stored_block in stored(outbox)) == 4  # 1.05 to 1.15 s
