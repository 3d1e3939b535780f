"""D1 to D16, what azure-iot-device 2.14 does when left to itself: whatever happens, the uplink delivers all, in
order, and ends connected.

Each fault begins with half of the records sent; the other half is stored while it lasts.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edge.cloud import iothub
from edge.cloud.iothub import IoTHub
from edge.errors import MessageRejected
from edge.message import unpack
from edge.outbox import NewRecord, Outbox
from edge.uplink import Uplink
from edge.uplink_settings import UplinkSettings
from tests.test_iothub import Edge, edge  # noqa: F401 (edge is a fixture)

PROMPT = UplinkSettings(latency_s=0, retry_min_s=0.01, retry_max_s=0.02, message_units=1, send_timeout_s=0.5)
RECORDS = 40


class Line:
    """An uplink between a real outbox, through the real SDK, and a hub that misbehaves."""

    def __init__(self, device: Edge, outbox: Outbox, uplink: Uplink, cloud: IoTHub) -> None:
        self.edge, self.outbox, self.uplink, self.cloud = device, outbox, uplink, cloud
        self.twins: list[dict] = []
        cloud.on_twin = self.twins.append

    @property
    def faults(self):
        return self.edge.hub.faults

    def happened(self, name: str, times: int = 1) -> Callable[[], bool]:
        return lambda: self.edge.hub.counters[f"fault: {name}"] >= times

    def store(self, count: int = RECORDS // 2) -> None:
        self.outbox.append([NewRecord(5, "drive", bytes(32), os.urandom(3000)) for _ in range(count)])


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iothub, "CALL_SECONDS", 1.0)
    monkeypatch.setattr(iothub, "CLOSE_SECONDS", 0.3)


@pytest.fixture
async def line(edge: Edge, tmp_path: Path, executor: ThreadPoolExecutor) -> AsyncIterator[Line]:  # noqa: F811
    folder = tmp_path / "outbox"
    with Outbox(folder) as outbox, Outbox(folder) as collector:
        cloud = IoTHub()
        cloud.retry_min_s, cloud.retry_max_s = 0.01, 0.02
        uplink = Uplink(outbox, cloud, executor, "car", PROMPT, poll_seconds=0.005)
        yield Line(edge, collector, uplink, cloud)


@asynccontextmanager
async def delivering(line: Line) -> AsyncIterator[None]:
    """Half before the fault, half during it; at the end all have arrived, in order, and the line is up."""
    line.store()
    tasks = [asyncio.create_task(line.cloud.run()), asyncio.create_task(line.uplink.run())]
    try:
        async with asyncio.timeout(40):
            await line.cloud.wait_connected()
            await line.edge.until(lambda: line.edge.hub.counters["messages"] >= 5)
            line.store()
            yield
            await line.edge.until(lambda: not line.outbox.stats().records)
            await line.cloud.wait_connected()
            assert not any(task.done() for task in tasks)
    finally:
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await line.uplink.finish(0)
    sequences = [record.sequence for body in line.edge.bodies for record in unpack(body).records]
    first = list(dict.fromkeys(sequences))
    assert sorted(first) == list(range(1, len(first) + 1))
    assert len(first) >= RECORDS
    if not line.edge.hub.counters["fault: silence_count"]:  # a hub that swallows messages keeps no order
        assert first == sorted(first)
    assert line.outbox.ledger() == []
    assert line.uplink.sent.poisonous == line.uplink.sent.rejected == 0


async def d1_the_token_cannot_be_signed_for_a_while(line: Line) -> None:
    await line.edge.stop_workload()
    line.edge.drop()
    seen = line.cloud.counters["rebuilds"]
    await line.edge.until(lambda: line.cloud.counters["rebuilds"] > seen + 1)
    await line.edge.start_workload()


async def d2_reconnecting_is_refused(line: Line) -> None:
    line.faults.refuse = 2
    line.edge.drop()
    await line.edge.until(line.happened("refuse", 2))


async def d3_a_desired_property_changes_during_an_outage(line: Line) -> None:
    line.faults.refuse = 2
    line.edge.drop()
    line.edge.hub.patch_desired("uplink", {"news": 1})
    await line.edge.until(lambda: line.twins[-1]["desired"].get("news") == 1)
    line.edge.hub.patch_desired("uplink", {"news": 2})
    await line.edge.until(lambda: line.twins[-1]["desired"].get("news") == 2)


async def d4_twin_answers_are_lost(line: Line) -> None:
    line.faults.silent, line.faults.silence_count = "$iothub/twin/GET", 2
    line.edge.drop()
    await line.edge.until(line.happened("silence_count", 2))


async def d5_messages_are_not_acknowledged(line: Line) -> None:
    line.faults.silent, line.faults.silence_count = "devices/", 3
    line.store()
    await line.edge.until(line.happened("silence_count", 3))


async def d6_a_message_over_the_limit_is_tried(line: Line) -> None:
    await line.cloud.wait_connected()
    seen = line.edge.hub.counters["connects"]
    with pytest.raises(MessageRejected):
        await line.cloud.send(bytes(300_000), "id", {}, 1)
    assert line.edge.hub.counters["connects"] == seen


async def d7_the_session_is_forgotten(line: Line) -> None:
    line.faults.forget_sessions = True
    line.edge.drop()
    await line.edge.until(line.happened("forget_sessions"))
    line.edge.hub.patch_desired("uplink", {"news": 1})
    await line.edge.until(lambda: line.twins[-1]["desired"].get("news") == 1)


async def d8_the_hub_is_away(line: Line) -> None:
    await line.edge.hub.stop()
    seen = line.cloud.counters["rebuilds"]
    await line.edge.until(lambda: line.cloud.counters["rebuilds"] > seen + 1)
    await line.edge.restart_hub()


async def d9_somebody_else_has_the_same_identity(line: Line) -> None:
    other = IoTHub()
    other.retry_min_s, other.retry_max_s = 0.05, 0.1
    task = asyncio.create_task(other.run())
    await line.edge.until(lambda: line.edge.hub.counters["kicked"] >= 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def d10_many_are_in_flight_when_it_drops(line: Line) -> None:
    line.store()
    line.faults.drop_before_ack = 2
    await line.edge.until(line.happened("drop_before_ack", 2))


async def d11_retries_wait_longer_each_time(line: Line) -> None:
    line.cloud.retry_min_s, line.cloud.retry_max_s = 0.02, 0.3
    line.faults.refuse = 5
    loop = asyncio.get_running_loop()
    line.edge.drop()
    began = loop.time()
    await line.edge.until(line.happened("refuse", 5))
    assert loop.time() - began > 0.5 * (0.02 + 0.04 + 0.08 + 0.16)


async def d12_suback_and_connack_are_lost(line: Line) -> None:
    line.faults.no_suback, line.faults.no_connack = 1, 1
    line.edge.drop()
    await line.edge.until(lambda: line.happened("no_suback")() and line.happened("no_connack")())


async def d13_the_twin_has_no_version(line: Line) -> None:
    line.faults.plain_twin = True
    line.edge.drop()
    await line.edge.until(line.happened("plain_twin"))


async def d14_the_token_gets_old(line: Line) -> None:
    before, iothub.RENEW_SECONDS = iothub.RENEW_SECONDS, 0.05
    try:
        line.edge.drop()
        seen = line.edge.hub.counters["connects"]
        await line.edge.until(lambda: line.edge.hub.counters["connects"] >= seen + 3)
    finally:
        iothub.RENEW_SECONDS = before


async def d15_failures_in_the_background_are_one_line_each(line: Line) -> None:
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        warnings = line.cloud.counters["sdk_warnings"]
        line.faults.drop_after = 3
        line.store()
        await line.edge.until(line.happened("drop_after"))
        await line.edge.until(lambda: line.cloud.counters["sdk_warnings"] > warnings)
        await line.cloud.wait_connected()
    finally:
        logging.getLogger().removeHandler(handler)
    assert not [record for record in seen if record.name.startswith(("azure", "paho"))]
    assert not [record for record in seen if record.exc_info or "\n" in record.getMessage()]


async def d16_subscribing_blocks(line: Line) -> None:
    """The event loop goes on meanwhile: it turns between the unanswered SUBSCRIBE and the end of the client."""
    line.faults.no_suback = 2
    line.edge.drop()
    await line.edge.until(line.happened("no_suback"))
    seen, turns = line.cloud.counters["rebuilds"], 0
    while line.cloud.counters["rebuilds"] == seen:
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 10


DEFECTS: list[Callable[[Line], Awaitable[None]]] = [
    value for name, value in sorted(globals().items()) if name.startswith("d") and name[1:2].isdigit()
]


def test_there_is_a_fault_for_each_known_defect():
    assert sorted(int(defect.__name__[1:].partition("_")[0]) for defect in DEFECTS) == list(range(1, 17))


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
async def test_everything_is_delivered_and_the_line_is_up_again(line, defect):
    async with delivering(line):
        await defect(line)
    assert line.uplink.sent.records >= RECORDS
