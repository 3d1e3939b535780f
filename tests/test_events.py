"""Events: which frames a window holds, however batches are split; what changes of campaigns and restarts do to them."""

import collections
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.frames import Frames
from cy_core.ring import Ring
from edge import block
from edge.campaign import Campaign, SignalRule, compile_campaign
from edge.collector import Collector
from edge.decoder import Decoder
from edge.line import Line
from edge.message import Block, Clock, Coverage
from edge.outbox import MIN_QUOTA_BYTES, Outbox
from edge.stream import Batch
from tests.strategies import batch
from tests.test_collector import MANIFEST, HandSource

DECODER = Decoder(MANIFEST)
EVERYTHING = {"*": SignalRule()}

Frame = tuple[int, int, int, int, bytes]


def motion(time_us: int, speed: int) -> Frame:
    return time_us, 0, 1, 0, speed.to_bytes(2, "little") + bytes(6)


def campaign(**fields: Any) -> Any:
    return compile_campaign("event", Campaign(EVERYTHING, **{"when": "Motion.Speed > 100", **fields}), MANIFEST)


def run(line: Line, frames: list[Frame], cuts: list[int], last: bool = True) -> list[tuple[Block, list[int]]]:
    """Blocks with the times in them."""
    found, start = [], 0
    for end in [*sorted(cuts), len(frames)]:
        is_last = last and end == len(frames)
        made = Batch(batch(frames[start:end]), Coverage("s", start, end), Clock(), last=is_last)
        for record in line.take(made):
            body = Block.decode(record.body)
            groups = block.decode(body.data, DECODER.plan).groups()
            found.append((body, sorted(at for group in groups for at in group.times.tolist())))
        start = end
    return found


def expected(frames: list[Frame], before: int, after: int, cooldown: int) -> list[int]:
    """The numbers of the frames that are in events, from the definition: in the order of arrival, to the frame."""
    chosen: list[int] = []
    until, quiet, clock, collected = None, -(10**18), 0, 0
    for number, (time_us, *_, payload) in enumerate(frames):
        clock = max(clock, time_us)
        if until is not None and time_us > until:
            until = None
        if int.from_bytes(payload[:2], "little") > 100 and clock >= quiet:
            quiet = clock + cooldown
            if until is None:
                start = next(n for n, frame in enumerate(frames) if frame[0] >= time_us - before)
                chosen += range(max(start, collected), number)
                until = time_us + after
            until = max(until, time_us + after)
        if until is not None:
            chosen.append(number)
            collected = number + 1
    return chosen


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_windows_hold_exactly_their_frames_and_none_twice_wherever_batches_are_split(data: Any) -> None:
    steps = data.draw(st.lists(st.sampled_from([0, 1, 10_000, 10_000, 400_000, 3_000_000, -5_000]), max_size=60))
    time_us, frames = 10**9, []
    for step in steps:
        time_us += step
        frames.append(motion(time_us, data.draw(st.sampled_from([0, 0, 0, 101]))))
    before, after, cooldown = (data.draw(st.sampled_from([0, 0.01, 0.5, 4])) for _ in range(3))
    line = Line(DECODER)
    line.select([campaign(before_s=before, after_s=after, cooldown_s=cooldown)], 0)
    cuts = data.draw(st.lists(st.integers(0, len(frames)), max_size=4))
    found = run(line, frames, cuts)
    wanted = expected(frames, round(before * 1e6), round(after * 1e6), round(cooldown * 1e6))
    assert sorted(at for _, times in found for at in times) == sorted(frames[number][0] for number in wanted)
    ends = [0, *(body.coverage.end for body, _ in found)]
    assert [body.coverage.first for body, _ in found] == ends[:-1]  # without holes, without overlaps


def test_an_event_that_never_comes_makes_no_record() -> None:
    line = Line(DECODER)
    line.select([campaign()], 0)
    assert run(line, [motion(at, 1) for at in range(100)], [50]) == []


def test_campaigns_share_the_ring_and_each_gets_its_own_window() -> None:
    line = Line(DECODER)
    short = compile_campaign("short", Campaign(EVERYTHING, when="rising(Motion.Speed > 100)", before_s=1), MANIFEST)
    long = compile_campaign("long", Campaign(EVERYTHING, when="rising(Motion.Speed > 100)", before_s=3), MANIFEST)
    line.select([short, long], 0)
    frames = [motion(at * 1_000_000, 200 if at == 9 else 0) for at in range(12)]
    assert [len(times) for _, times in run(line, frames, [4, 9])] == [2, 4]


def test_at_most_so_many_events_a_day_and_none_outside_of_start_and_end() -> None:
    day, hour = 86_400_000_000, 3_600_000_000
    frames = [motion(at * hour, 200 * (at % 2)) for at in range(60)]
    line = Line(DECODER)
    limited = campaign(when="rising(Motion.Speed > 100)", max_events_per_day=2)
    line.select([limited], 0)
    times = [at for _, piece in run(line, frames, []) for at in piece]
    assert times == [at + n * day for n in (0, 1, 2) for at in (hour, 3 * hour)]
    assert line.streams["event"].tally.over_limit == 10 + 10 + 4
    document = {"signals": {"*": {}}, "start": "1970-01-01T05:00:00Z", "end": "1970-01-01T07:00:00Z"}
    always = compile_campaign("event", msgspec.convert(document, Campaign), MANIFEST)
    line = Line(DECODER)
    line.select([always], 0)
    assert [at for _, piece in run(line, frames, [6]) for at in piece] == [5 * hour, 6 * hour]


def test_a_ring_that_is_too_small_cuts_the_event_and_says_so() -> None:
    line = Line(DECODER, ring_bytes=4096)
    line.select([campaign(before_s=1000)], 0)
    frames = [motion(at * 1000, 200 if at == 999 else 0) for at in range(1000)]
    [(_, times)] = run(line, frames, list(range(0, 1000, 10)))
    assert 100 < len(times) <= 4096 // 24
    assert times[-1] == 999_000
    assert line.streams["event"].tally.cut == 1
    assert line.ring.allocated_bytes <= 4096


def test_a_change_of_one_campaign_leaves_an_event_of_another_under_way() -> None:
    line = Line(DECODER)
    event = campaign(when="rising(Motion.Speed > 100)", before_s=2, after_s=10)
    line.select([event, compile_campaign("other", Campaign(EVERYTHING), MANIFEST)], 0)
    frames = [motion(at * 1_000_000, 200 if at == 3 else 0) for at in range(10)]
    [*_, (_, first)] = run(line, frames[:5], [], last=False)
    assert len(first) in (4, 5)
    changed = compile_campaign("other", Campaign({"Cells.*": SignalRule()}), MANIFEST)
    assert line.changed([event, changed]) == {"other"}
    line.select([event, changed], 5)
    [(body, times)] = run(line, frames[5:], [], last=False)
    assert times == [at * 1_000_000 for at in range(5, 10)]
    assert body.counters.samples == 10


def test_an_event_under_way_is_durable_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    frames = [motion(at * 1_000_000, 200 if at == 5 else 0) for at in range(14)]
    event = campaign(when="rising(Motion.Speed > 100)", before_s=2, after_s=5)
    with Outbox(tmp_path / "outbox") as outbox:
        source = HandSource().put(*(frame[:3] + frame[4:] for frame in frames[:8]))
        first = Collector(source, DECODER, outbox)
        first.select([event], 0, 100)
        first.step()  # and is killed here
        again = HandSource()
        second = Collector(again, Decoder(MANIFEST), outbox)
        assert again.position == 8
        again.put(*(frame[:3] + frame[4:] for frame in frames[8:]))
        second.select([event], 0, 100)
        second.step()
        blocks = [Block.decode(record.body) for record in outbox.peek(1 << 20, 10)]
    times = [at for body in blocks for group in block.decode(body.data, DECODER.plan).groups() for at in group.times]
    assert times == [at * 1_000_000 for at in range(3, 11)]
    assert [(body.coverage.first, body.coverage.end) for body in blocks] == [(0, 8), (8, 14)]


def test_a_snapshot_captures_now_with_before_and_after_and_then_ends(tmp_path: Path) -> None:
    frames = [motion(at * 1_000_000, 0) for at in range(20)]
    with Outbox(tmp_path / "outbox") as outbox:
        source = HandSource().put(*(frame[:3] + frame[4:] for frame in frames[:10]))
        collector = Collector(source, DECODER, outbox)
        collector.select([campaign()], 0, 100, ring_s=30)
        collector.step()
        shot = Campaign(EVERYTHING, 1, before_s=3, after_s=2)
        collector.snapshot(compile_campaign("snapshot", shot, MANIFEST, is_snapshot=True))
        source.put(*(frame[:3] + frame[4:] for frame in frames[10:]))
        collector.step()
        [record] = outbox.peek(1 << 20, 10)
        assert "snapshot" in collector.line.streams or record.stream == "snapshot"
    groups = block.decode(Block.decode(record.body).data, DECODER.plan).groups()
    times = [at // 1_000_000 for group in groups for at in group.times]
    assert (record.stream, record.priority) == ("snapshot", 1)
    assert times == list(range(16, 20))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_change_of_campaigns_loses_no_frame_wherever_it_comes(data: Any) -> None:
    """Those that go on have every frame once; one that begins has all from then on, one that ends all up to then."""
    count = data.draw(st.integers(1, 60))
    changes = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    kinds = [campaign(when=None), campaign(when=None, priority=3), campaign(when=None, tick_us=10)]
    with TemporaryDirectory() as folder, Outbox(Path(folder), MIN_QUOTA_BYTES) as outbox:
        source = HandSource()
        collector = Collector(source, DECODER, outbox)
        stays = compile_campaign("stays", Campaign(EVERYTHING), MANIFEST)
        collector.select([stays], 60, 7)
        began: dict[str, int] = {}
        wanted = {"stays": list(range(count))}
        for at in range(count + 1):
            for _ in range(changes.count(at)):
                for name, start in began.items():
                    wanted[name] = list(range(start, at))
                one = msgspec.structs.replace(kinds[len(wanted) % 3], stream=f"c{len(wanted)}")
                collector.select([stays, one], 60, 7)
                began = {one.stream: at}
                wanted[one.stream] = []
            if at < count:
                source.put((1000 * at, 0, 1, bytes(8)))
                collector.step()
        for name, start in began.items():
            wanted[name] = list(range(start, count))
        collector.store(last=True)
        found = collections.defaultdict(list)
        for record in outbox.peek(1 << 30, 1000):
            body = Block.decode(record.body)
            found[record.stream] += [t // 1000 for g in block.decode(body.data, DECODER.plan).groups() for t in g.times]
            assert body.coverage.missing == 0
    assert {name: sorted(numbers) for name, numbers in found.items() if numbers} == {
        name: numbers for name, numbers in wanted.items() if numbers
    }


def test_state_of_periods_is_given_out_when_a_campaign_ends() -> None:
    line = Line(DECODER)
    rule = {"Motion.Speed": SignalRule(filter="timebased", period_s=60)}
    line.select([compile_campaign("slow", Campaign(rule), MANIFEST)], 0)
    frames = [motion(at * 1_000_000, at) for at in range(50)]
    assert run(line, frames, [20], last=False) == []
    [record] = line.take(Batch(Frames(), Coverage("s", 50, 50), Clock()), {"slow"})
    [group] = block.decode(Block.decode(record.body).data, DECODER.plan).groups()
    assert (group.times.tolist(), Block.decode(record.body).coverage) == ([49_000_000], Coverage("s", 0, 50))


# -- the ring


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_the_ring_holds_the_newest_frames_whatever_their_sizes_inside_its_limit(data: Any) -> None:
    noise = random.Random(data.draw(st.integers(0, 1000)))
    ring, all_frames = Ring(data.draw(st.sampled_from([4096, 8192, 70_000]))), []
    for _ in range(data.draw(st.integers(1, 12))):
        count, long = data.draw(st.integers(0, 200)), data.draw(st.sampled_from([0.0, 0.1, 1.0]))
        made = []
        for _ in range(count):
            size = 64 if noise.random() < long else noise.randrange(9)
            made.append((len(all_frames) + len(made), 1, 2, 4, noise.randbytes(size)))
        ring.append(batch(made))
        all_frames += made
        if data.draw(st.booleans()):
            ring.trim(noise.randrange(len(all_frames) + 1))
        assert ring.end == len(all_frames)
        assert list(ring.cut(ring.first, ring.end)) == all_frames[ring.first :]
        assert ring.allocated_bytes <= ring.limit_bytes
    assert ring.find(0, len(all_frames)) == ring.end


def test_thirty_seconds_at_ten_thousand_frames_a_second_take_less_than_ten_megabytes() -> None:
    ring, frames = Ring(10_000_000), Frames()
    for number in range(10_000):
        frames.append(number * 100, 0, number % 2048, bytes(8))
    for second in range(40):
        part = Frames()
        part.extend(*frames.to_bytes())
        ring.append(part)
        assert second < 30 or len(ring) >= 300_000
    assert ring.allocated_bytes < 10_000_000
    assert collections.Counter(frame[1] for frame in ring.cut(ring.end - 10, ring.end)) == {0: 10}


@pytest.mark.parametrize("limit", [0, 4095, -1])
def test_a_ring_without_room_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="4096 are the least"):
        Ring(limit)


def test_what_a_campaign_collects_has_its_time_to_live() -> None:
    line = Line(DECODER)
    made = [compile_campaign(f"c{ttl_s}", Campaign(EVERYTHING, ttl_s=ttl_s), MANIFEST) for ttl_s in (3600, 0)]
    line.select(made, 0)
    frames = Batch(batch([motion(10**9, 1)]), Coverage("s", 0, 1), Clock(), last=True)
    assert [record.ttl_s for record in line.take(frames)] == [3600, 0]
