"""What the uplink sends next: urgency, fairness, cost, and what a message is filled to."""

import asyncio
import random

import msgspec
import pytest

from edge.message import Envelope
from edge.outbox import Outbox
from edge.uplink import Uplink
from edge.uplink_settings import UplinkSettings
from tests.fake_cloud import MANIFEST, PROMPT, FakeCloud, new, running, until, until_empty


async def test_a_message_is_filled_up_to_the_unit_and_holds_one_manifest(outbox, collector, executor):
    cloud = FakeCloud()
    other = b"\1" * 32
    collector.append([new(900) for _ in range(6)] + [new(900, manifest=other) for _ in range(2)])
    async with running(outbox, cloud, executor):
        await until_empty(cloud, collector)
    assert [[r.sequence for r in e.records] for e in cloud.delivered] == [[1, 2, 3, 4], [5, 6], [7, 8]]
    assert [e.manifest for e in cloud.delivered] == [MANIFEST, MANIFEST, other]


async def test_a_record_larger_than_the_unit_goes_alone(outbox, collector, executor):
    cloud = FakeCloud()
    collector.append([new(100), new(200_000), new(100)])
    async with running(outbox, cloud, executor):
        await until_empty(cloud, collector)
    assert [[r.sequence for r in e.records] for e in cloud.delivered] == [[1], [2], [3]]


async def test_records_wait_for_the_message_to_fill_but_not_in_a_backlog_and_not_with_priority_zero(
    outbox, collector, executor
):
    cloud = FakeCloud()
    patient = msgspec.structs.replace(PROMPT, latency_s=3600)
    async with running(outbox, cloud, executor, patient):
        collector.append([new(900) for _ in range(5)])
        await until(cloud, lambda: bool(cloud.delivered))
        assert cloud.sequences == [1, 2, 3, 4]
        collector.append([new(900, priority=0)])
        await until(cloud, lambda: len(cloud.delivered) == 2)
        assert cloud.sequences == [1, 2, 3, 4, 6, 5]


async def test_under_a_constant_load_of_what_is_urgent_the_rest_still_gets_through(outbox, collector, executor):
    cloud = FakeCloud()
    collector.append([new(3000, priority=9, stream="slow") for _ in range(5)])

    async def keep_urgent_ones_coming(envelope: Envelope) -> None:
        if len(cloud.attempts) < 200:
            collector.append([new(3000, priority=0) for _ in envelope.records])

    cloud.answer = keep_urgent_ones_coming
    collector.append([new(3000, priority=0) for _ in range(20)])
    async with running(outbox, cloud, executor):
        await until(cloud, lambda: len(cloud.delivered) >= 100)
    streams = [record.stream for envelope in cloud.delivered[:100] for record in envelope.records]
    assert streams.count("slow") == 5
    assert streams.index("slow") >= 5
    within_slow = [r.sequence for e in cloud.delivered for r in e.records if r.stream == "slow"]
    assert within_slow == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("least", "most"), [(50, 500), (500, 9000), (9000, 30_000), (40_000, 64_000)])
async def test_under_load_messages_are_filled_to_97_percent_of_what_is_billed(tmp_path, executor, least, most):
    cloud, seed = FakeCloud(), random.Random(most)
    full = msgspec.structs.replace(PROMPT, message_units=UplinkSettings().message_units)
    with Outbox(tmp_path, 64 << 20) as outbox:
        size, load_bytes = 0, max(1_500_000, 100 * most)
        while size < load_bytes:
            records = [new(seed.randint(least, most)) for _ in range(50)]
            outbox.append(records)
            size += sum(len(record.body) for record in records)
        async with running(outbox, cloud, executor, full) as uplink:
            await until(cloud, lambda: uplink.sent.bytes > 0.8 * load_bytes)
            assert uplink.sent.bytes / (4096 * uplink.sent.units) >= 0.97
    assert cloud.sequences == list(range(1, len(cloud.sequences) + 1))


async def test_a_priority_that_has_spent_its_day_waits_and_the_others_go_on(outbox, collector, executor):
    cloud = FakeCloud()
    thrifty = msgspec.structs.replace(PROMPT, daily_bytes={"5": 40_000})
    collector.append([new(3000) for _ in range(30)])
    async with running(outbox, cloud, executor, thrifty) as uplink:
        await until(cloud, lambda: cloud.delivered and uplink.waiting_for_budget == [5] and not cloud.in_flight)
        spent = sum(4096 for _ in cloud.delivered)
        assert 28_000 <= spent <= 40_000
        collector.append([new(3000, priority=2)])
        await until(cloud, lambda: 31 in cloud.sequences)
        await until(cloud, lambda: collector.stats().records == 30 - spent // 4096)
    again = FakeCloud()
    async with running(outbox, again, executor, thrifty) as uplink:  # a restart does not begin the day anew
        await until(again, lambda: uplink.waiting_for_budget == [5])
        assert not again.attempts
        uplink.settings = PROMPT
        uplink._look = True
        await until_empty(again, collector)


async def test_over_a_metered_network_only_what_is_urgent_goes_out(outbox, collector, executor):
    cloud, metered = FakeCloud(), True
    collector.append([new(100, priority=priority) for priority in (9, 3, 4, 0)])
    uplink = Uplink(outbox, cloud, executor, "car", PROMPT, poll_seconds=0.001, metered=lambda: metered)
    task = asyncio.create_task(uplink.run())
    try:
        async with asyncio.timeout(20):
            await until(cloud, lambda: len(cloud.sequences) == 2)
            assert sorted(cloud.sequences) == [2, 4]
            uplink.settings = msgspec.structs.replace(PROMPT, metered=False)  # the twin knows better
            collector.append([new(100, priority=5)])
            await until_empty(cloud, collector)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert sorted(cloud.sequences) == [1, 2, 3, 4, 5]
