"""The uplink: nothing leaves the outbox before the cloud's acknowledgement, and everything does after it."""

import asyncio
import itertools
import signal
import subprocess
import sys

import pytest

from edge import fates
from edge.errors import CloudUnreachable, MessageRejected
from edge.message import Envelope
from edge.outbox import NewRecord, Outbox
from edge.uplink import Uplink
from edge.uplink_settings import UplinkSettings
from tests.fake_cloud import MANIFEST, PROMPT, FakeCloud, new, running, until, until_empty


async def test_everything_arrives_once_in_order_and_then_leaves_the_outbox(outbox, collector, executor):
    cloud = FakeCloud()
    records = [new(100 + 37 * i % 900) for i in range(300)]
    collector.append(records)
    async with running(outbox, cloud, executor) as uplink:
        await until_empty(cloud, collector)
        assert cloud.sequences == list(range(1, 301))
        bodies = [record.body for envelope in cloud.delivered for record in envelope.records]
        assert bodies == [record.body for record in records]
        assert {(e.vehicle_id, e.outbox_id, e.manifest) for e in cloud.delivered} == {("car", outbox.id, MANIFEST)}
        assert (uplink.sent.messages, uplink.sent.records) == (len(cloud.delivered), 300)
        assert cloud.ids[0].startswith(f"{outbox.id.hex()[:8]}-1-")


async def test_nothing_leaves_the_outbox_before_the_cloud_acknowledges(outbox, collector, executor):
    cloud, gate = FakeCloud(), asyncio.Event()
    cloud.answer = lambda envelope: gate.wait()
    collector.append([new(3000) for _ in range(3)])
    async with running(outbox, cloud, executor):
        await until(cloud, lambda: cloud.in_flight == 3)
        assert collector.stats().records == 3
        gate.set()
        await until_empty(cloud, collector)


async def test_never_more_than_the_allowed_number_is_in_flight(outbox, collector, executor):
    cloud, gate = FakeCloud(), asyncio.Event()
    cloud.answer = lambda envelope: gate.wait()
    collector.append([new(3000) for _ in range(40)])
    async with running(outbox, cloud, executor):
        await until(cloud, lambda: cloud.in_flight == 16)
        gate.set()
        await until_empty(cloud, collector)
    assert cloud.most_in_flight == 16
    assert cloud.sequences == list(range(1, 41))


async def test_the_place_of_an_acknowledged_message_is_used_while_the_others_are_on_their_way(
    outbox, collector, executor
):
    cloud, gate = FakeCloud(), asyncio.Event()

    async def first_only(envelope):
        if envelope.records[0].sequence > 1:
            await gate.wait()

    cloud.answer = first_only
    collector.append([new(3000) for _ in range(20)])
    async with running(outbox, cloud, executor):
        await until(cloud, lambda: len(cloud.delivered) == 1 and cloud.in_flight == 16)
        gate.set()
        await until_empty(cloud, collector)


async def test_a_more_important_record_overtakes_what_is_not_yet_in_flight(outbox, collector, executor):
    cloud, gate = FakeCloud(), asyncio.Event()
    cloud.answer = lambda envelope: gate.wait()
    collector.append([new(3000) for _ in range(20)])
    async with running(outbox, cloud, executor):
        await until(cloud, lambda: cloud.in_flight == 16)
        collector.append([new(3000, priority=0)])
        gate.set()
        await until_empty(cloud, collector)
    assert cloud.sequences[16] == 21


async def test_when_the_connection_drops_everything_still_arrives_and_for_the_first_time_in_order(
    outbox, collector, executor
):
    cloud = FakeCloud()
    arrived: list[int] = []
    broken = False

    async def drop_now_and_then(envelope: Envelope) -> None:
        """As a connection does: what follows the message it drops at is lost, too; that one had arrived."""
        nonlocal broken
        broken = broken and cloud.in_flight > 1
        if not broken:
            arrived.extend(record.sequence for record in envelope.records)
            broken = len(cloud.attempts) % 7 == 3
        if broken:
            raise CloudUnreachable("dropped")

    cloud.answer = drop_now_and_then
    collector.append([new(1500, stream=f"s{i % 3}") for i in range(60)])
    async with running(outbox, cloud, executor) as uplink:
        await until_empty(cloud, collector)
        assert uplink.sent.retries > 1
    assert len(arrived) > 60
    assert list(dict.fromkeys(arrived)) == list(range(1, 61))


async def test_while_there_is_no_connection_nothing_is_sent_and_then_everything(outbox, collector, executor):
    cloud = FakeCloud()
    cloud.connected.clear()
    collector.append([new() for _ in range(5)])
    async with running(outbox, cloud, executor):
        for _ in range(50):
            await asyncio.sleep(0)
        assert not cloud.attempts
        cloud.connected.set()
        await until_empty(cloud, collector)
    assert cloud.sequences == [1, 2, 3, 4, 5]


async def test_a_rejected_record_is_set_aside_and_its_neighbours_arrive(outbox, collector, executor):
    cloud = FakeCloud()

    async def refuse_three(envelope: Envelope) -> None:
        if any(record.sequence == 3 for record in envelope.records):
            raise MessageRejected("too odd")

    cloud.answer = refuse_three
    collector.append([new(500) for _ in range(6)])
    async with running(outbox, cloud, executor) as uplink:
        await until_empty(cloud, collector)
        assert uplink.sent.rejected == 1
        await until(cloud, lambda: any(e.evictions for e in cloud.delivered))
    assert sorted(cloud.sequences) == [1, 2, 4, 5, 6]
    [entry] = [entry for envelope in cloud.delivered for entry in envelope.evictions]
    assert (entry.first_sequence, entry.count, entry.reason) == (3, 1, "rejected")


async def test_what_was_evicted_is_told_and_then_forgotten(outbox, collector, executor):
    cloud = FakeCloud()
    collector.append([new() for _ in range(4)])
    collector.evict(1)
    async with running(outbox, cloud, executor):
        await until_empty(cloud, collector)
    [entry] = [entry for envelope in cloud.delivered for entry in envelope.evictions]
    assert (entry.first_sequence, entry.last_sequence, entry.count, entry.stream) == (1, 1, 1, "drive")
    assert collector.ledger() == []


async def test_of_each_stream_it_is_known_how_much_was_sent_and_how_much_left_unsent(
    outbox, collector, executor, tmp_path
):
    cloud = FakeCloud()
    collector.append([new() for _ in range(3)])
    collector.append([NewRecord(7, "slow", MANIFEST, b"x") for _ in range(5)])
    collector.evict(1)
    assert collector.untold() == {"slow": 1}
    async with running(outbox, cloud, executor) as uplink:
        await until_empty(cloud, collector)
        while collector.ledger():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert uplink.fates.counts({"slow": 2, "gone": 1}) == {
        "drive": {"sent": 3, "evicted": 0},
        "slow": {"sent": 4, "evicted": 3},
        "gone": {"sent": 0, "evicted": 1},
    }
    uplink.fates.save(tmp_path, collector.untold())
    assert fates.load(tmp_path) == {"drive": {"sent": 3, "evicted": 0}, "slow": {"sent": 4, "evicted": 1}}
    (tmp_path / fates.STATUS_FILE).write_text('{"streams": {"drive": 3}}')
    assert fates.load(tmp_path) == fates.load(tmp_path / "nothing") == {}


async def test_evictions_are_told_even_where_nothing_is_left_to_send(outbox, collector, executor):
    cloud = FakeCloud()
    collector.append([new()])
    collector.evict(1)
    async with running(outbox, cloud, executor):
        await until(cloud, lambda: bool(cloud.delivered))
    assert (cloud.delivered[0].records, cloud.delivered[0].manifest) == ([], b"")
    assert cloud.ids == [f"{outbox.id.hex()[:8]}-e1-1"]


async def test_records_that_arrive_later_from_the_other_process_are_noticed(outbox, collector, executor):
    cloud = FakeCloud()
    async with running(outbox, cloud, executor):
        for count in range(1, 6):
            collector.append([new(10)])
            await until(cloud, lambda count=count: len(cloud.sequences) == count)
    assert cloud.sequences == [1, 2, 3, 4, 5]


async def test_what_has_arrived_is_forgotten_soon_even_if_the_rest_of_the_window_gets_no_answer(
    outbox, collector, executor
):
    cloud, gate = FakeCloud(), asyncio.Event()

    async def answer_the_first_ten(envelope: Envelope) -> None:
        if envelope.records[0].sequence > 10:
            await gate.wait()

    cloud.answer = answer_the_first_ten
    collector.append([new(3000) for _ in range(40)])
    async with running(outbox, cloud, executor):
        await until(cloud, lambda: collector.stats().records == 30)
        assert cloud.in_flight == 16
        gate.set()
        await until_empty(cloud, collector)
    assert cloud.sequences == list(range(1, 41))


async def test_finish_waits_for_what_is_in_flight_and_acknowledges_it(outbox, collector, executor):
    cloud, gate = FakeCloud(), asyncio.Event()
    cloud.answer = lambda envelope: gate.wait()
    collector.append([new(3000) for _ in range(20)])
    uplink = Uplink(outbox, cloud, executor, "car", PROMPT)
    while uplink.in_flight < 16:
        await uplink.step()
    asyncio.get_running_loop().call_soon(gate.set)
    await uplink.finish(10)
    assert collector.stats().records == 4


@pytest.mark.process
def test_a_kill_between_send_and_acknowledgement_gives_a_duplicate_and_never_a_loss(tmp_path):
    """The child's cloud prints what it gets and then never answers the fifth message."""
    code = f"""
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
from edge.outbox import *
from edge.uplink import *
from edge.message import unpack
class Cloud:
    count = 0
    async def wait_connected(self): pass
    async def send(self, body, message_id, properties, timeout_s):
        Cloud.count += 1
        print(*(record.sequence for record in unpack(body).records), flush=True)
        if Cloud.count == int(sys.argv[1]): await asyncio.Event().wait()
outbox = Outbox({str(tmp_path)!r})
settings = UplinkSettings(latency_s=0, message_units=1, max_in_flight=1)
asyncio.run(Uplink(outbox, Cloud(), ThreadPoolExecutor(1), "car", settings, 0.001).run())
"""
    with Outbox(tmp_path) as outbox:
        outbox.append([new(3000) for _ in range(10)])
        got: list[int] = []
        while outbox.stats().records:
            child = subprocess.Popen([sys.executable, "-c", code, "5"], stdout=subprocess.PIPE, text=True)
            assert child.stdout
            for _ in range(min(5, outbox.stats().records)):
                got.append(int(child.stdout.readline()))
            if len(got) > 10:
                while outbox.stats().records:
                    continue
            child.send_signal(signal.SIGKILL)
            child.wait()
    assert sorted(set(got)) == list(range(1, 11))
    # The fifth, and the fourth if the kill came before the outbox had forgotten it.
    again = [before - after for before, after in itertools.pairwise(got) if after <= before]
    assert len(again) in (2, 3)
    assert set(again) <= {0, 1}


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="retry_min_s"):
        UplinkSettings(retry_min_s=10, retry_max_s=1)


# Bad records, slow hubs


async def test_a_record_that_breaks_every_connection_is_set_aside_once_others_have_shown_that_it_is_to_blame(
    outbox, collector, executor
):
    cloud, broken = FakeCloud(), False

    async def break_at_seven(envelope: Envelope) -> None:
        nonlocal broken
        broken = (broken and cloud.in_flight > 1) or any(record.sequence == 7 for record in envelope.records)
        if broken:
            raise CloudUnreachable("the connection dropped")

    cloud.answer = break_at_seven
    collector.append([new(900) for _ in range(60)])
    async with running(outbox, cloud, executor) as uplink:
        await until(cloud, lambda: len(set(cloud.sequences)) == 59)
        while not uplink.sent.poisonous:  # it is tried again only as others arrive
            seen = len(cloud.sequences)
            collector.append([new(900) for _ in range(8)])
            await until(cloud, lambda seen=seen: len(cloud.sequences) >= seen + 8)
        await until(cloud, lambda: any(e.evictions for e in cloud.delivered))
    [entry] = [entry for envelope in cloud.delivered for entry in envelope.evictions]
    assert (entry.first_sequence, entry.count, entry.reason) == (7, 1, "poisonous")
    assert 7 not in cloud.sequences


async def test_a_network_that_is_bad_for_all_condemns_nobody(outbox, collector, executor):
    cloud = FakeCloud()

    async def never(envelope: Envelope) -> None:
        raise CloudUnreachable("no")

    cloud.answer = never
    collector.append([new(900) for _ in range(10)])
    async with running(outbox, cloud, executor) as uplink:
        await until(cloud, lambda: uplink.sent.retries > 60)
        cloud.answer = cloud.take
        await until_empty(cloud, collector)
        assert uplink.sent.poisonous == uplink.sent.rejected == 0
    assert sorted(cloud.sequences) == list(range(1, 11))


async def test_a_hub_that_answers_late_is_sent_less_at_a_time_until_it_answers_in_time_again(
    outbox, collector, executor, monkeypatch
):
    cloud = FakeCloud()
    collector.append([new(3000) for _ in range(200)])
    uplink = Uplink(outbox, cloud, executor, "car", PROMPT)
    monkeypatch.setattr("edge.uplink.SLOW_SECONDS", -1.0)
    while uplink.window > 1:
        await uplink.step()
    monkeypatch.setattr("edge.uplink.SLOW_SECONDS", 1e9)
    while uplink.window < 16:
        await uplink.step()
    await uplink.finish(10)
