"""Both modules as processes on disks that take nothing: each says so, loses nothing, and goes on once it may."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edge.message import Block, unpack
from edge.outbox import NewRecord, Outbox
from fleet.ranges import Ranges
from simulator.simulate import drive
from tests.mosquitto import Broker

pytestmark = [pytest.mark.process]
COLLECT = {"durable_s": 0.1, "campaigns": {"all": {"signals": {"*": {}}, "latency_s": 0.2}}}
SEND = {"latency_s": 0.1, "retry_min_s": 0.1, "retry_max_s": 0.5}
EARLIER = [NewRecord(5, "earlier", bytes(32), Block(bytes([n]) * 20_000).encode()) for n in range(40)]


class Vehicle:
    """A collector that replays a drive and an uplink, on one disk, with a real broker as the cloud."""

    def __init__(self, folder: Path, disk: Path, broker: Broker, source: dict[str, str]) -> None:
        self.outbox = disk / "outbox"
        self.received: set[int] = set()
        self.evicted: set[int] = set()
        self.collected = Ranges()
        self.ready = asyncio.Event()
        self._answers: dict[str, dict[str, Any]] = {}
        self._hog = disk / "hog"
        self._broker = broker
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        certificate, key = broker.authority.issue("car")
        self._environment = (
            os.environ
            | source
            | {
                "BORDNETZ_CLOUD": f"mqtts://localhost:{broker.port}",
                "BORDNETZ_VEHICLE": "car",
                "BORDNETZ_CA": str(broker.authority.certificate),
                "BORDNETZ_CERTIFICATE": str(certificate),
                "BORDNETZ_KEY": str(key),
                "BORDNETZ_OUTBOX": str(self.outbox),
            }
        )

    def start(self, module: str, *prefix: str) -> "subprocess.Popen[bytes]":
        command = [*prefix, sys.executable, "-m", f"modules.{module}.main"]
        with (self._folder / f"{module}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, env=self._environment, stdout=log, stderr=log))
        return self._processes[-1]

    def ends(self, module: str, *prefix: str) -> tuple[int, list[str]]:
        """Its exit status, and what it wrote."""
        status = self.start(module, *prefix).wait(20)
        return status, (self._folder / f"{module}.log").read_text().splitlines()

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def fill(self) -> None:
        with suppress(OSError), self._hog.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def make_room(self) -> None:
        self._hog.unlink()

    async def listen(self) -> None:
        async with self._broker.client("cloud") as client:
            for topic in ("uplink/messages", "+/answer/#"):
                await client.subscribe(f"bordnetz/car/{topic}", 1)
            await client.publish("bordnetz/car/uplink/desired", json.dumps(SEND), 1, retain=True)
            self._client = client
            self.ready.set()
            async for message in client.messages:
                _, _, module, what, *_ = message.topic.value.split("/")
                if what == "answer":
                    self._answers[module] = json.loads(message.payload)["payload"]
                else:
                    self._receive(bytes(message.payload))

    def _receive(self, body: bytes) -> None:
        envelope = unpack(body)
        for eviction in envelope.evictions:
            self.evicted.update(range(eviction.first_sequence, eviction.last_sequence + 1))
        for record in envelope.records:
            self.received.add(record.sequence)
            covered = Block.decode(record.body).coverage
            self.collected.add(covered.first, covered.end - 1)

    async def status(self, module: str, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """getStatus, as soon as it is as asked."""
        self._answers.clear()
        async with asyncio.timeout(30):
            while not (module in self._answers and holds(self._answers[module])):
                await self._client.publish(f"bordnetz/car/{module}/call/getStatus/1", b"", 1)
                await asyncio.sleep(0.05)
        return self._answers[module]

    async def collect(self) -> None:
        await self._client.publish("bordnetz/car/collector/desired", json.dumps(COLLECT), 1, retain=True)

    async def everything(self, earlier: int = 0) -> None:
        """Until the drive is over and all of it has arrived, and of so many earlier records each has or is told of."""
        await self.collect()
        status = await self.status("collector", lambda status: status["source"]["state"] == "finished")
        drive, before = [(0, status["source"]["frames"] - 1)], set(range(1, earlier + 1))
        async with asyncio.timeout(30):
            while list(self.collected) != drive or not before <= self.received | self.evicted:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """12 MB, far below the outbox's quota."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)]
    if (mount := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip(f"a small disk needs the right to mount: {mount.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("drive")
    recording, manifest = drive(folder, 2, 1, lambda line: None)
    manifest.save(folder / "manifest.json")
    return {"BORDNETZ_MANIFEST": str(folder / "manifest.json"), "BORDNETZ_SOURCE": f"replay:{recording}"}


@pytest.fixture
async def vehicle(tmp_path: Path, disk: Path, source: dict[str, str]) -> AsyncIterator[Vehicle]:
    broker = Broker(tmp_path)
    await broker.start()
    vehicle = Vehicle(tmp_path, disk, broker, source)
    listening = asyncio.create_task(vehicle.listen())
    try:
        await asyncio.wait_for(vehicle.ready.wait(), 20)
        yield vehicle
    finally:
        vehicle.stop()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        broker.stop()


class Full:
    """Not a byte left, and the ballast went earlier."""

    status, said = 1, r"disk/outbox/outbox\.db: no room left on the disk"
    prefix: tuple[str, ...] = ()

    def begin(self, vehicle: Vehicle) -> None:
        (vehicle.outbox / "outbox.ballast").unlink()
        vehicle.fill()

    def end(self, vehicle: Vehicle) -> None:
        vehicle.make_room()


class ReadOnly:
    status, said = 2, r"disk/outbox: cannot hold the outbox \(Read-only file system\); bind a writable directory"
    prefix: tuple[str, ...] = ()

    def begin(self, vehicle: Vehicle) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(vehicle.outbox.parent)], check=True)

    def end(self, vehicle: Vehicle) -> None:
        subprocess.run(["mount", "-o", "remount,rw", str(vehicle.outbox.parent)], check=True)


class Foreign:
    """Somebody else's directory, and a root without capabilities, as it is in the containers."""

    status, said = 2, r"disk/outbox: cannot hold the outbox .*; it belongs to user 65534: give it to user 0"
    prefix = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")

    def begin(self, vehicle: Vehicle) -> None:
        vehicle.outbox.chmod(0o700)
        os.chown(vehicle.outbox, 65534, 65534)

    def end(self, vehicle: Vehicle) -> None:
        os.chown(vehicle.outbox, 0, 0)


@pytest.mark.parametrize("obstacle", [Full(), ReadOnly(), Foreign()], ids=["full", "read-only", "foreign"])
async def test_where_nothing_can_be_stored_a_module_ends_with_one_line_and_later_nothing_is_missing(vehicle, obstacle):
    with Outbox(vehicle.outbox) as outbox:
        outbox.append(EARLIER)
    obstacle.begin(vehicle)
    for module in ("collector", "uplink"):
        status, [said] = await asyncio.to_thread(vehicle.ends, module, *obstacle.prefix)
        assert status == obstacle.status
        assert re.search(obstacle.said, said)
    obstacle.end(vehicle)
    for module in ("collector", "uplink"):
        vehicle.start(module, *obstacle.prefix)
    await vehicle.everything(len(EARLIER))
    assert not vehicle.evicted


async def test_on_a_disk_filled_by_others_the_ballast_lets_both_modules_work_and_each_record_is_accounted_for(vehicle):
    with Outbox(vehicle.outbox) as outbox:
        outbox.append(EARLIER)
    vehicle.fill()
    for module in ("collector", "uplink"):
        vehicle.start(module)
    # The collector makes room for its blocks among what is old, as long as the uplink has not yet.
    await vehicle.everything(len(EARLIER))
    assert not (vehicle.outbox / "outbox.ballast").exists()


async def test_a_disk_that_fills_up_on_the_way_is_named_in_the_status_and_nothing_is_missing_afterwards(vehicle):
    for module in ("collector", "uplink"):
        vehicle.start(module)
        await vehicle.status(module, lambda status: status["connected"])
    (vehicle.outbox / "outbox.ballast").unlink()
    vehicle.fill()
    await vehicle.collect()
    status = await vehicle.status("collector", lambda status: status["problem"])
    assert re.search(r"the outbox does not take a block: .*outbox\.db: no room left", status["problem"])
    assert status["problem"] in status["why"]
    assert not (await vehicle.status("uplink", lambda status: True))["sent"]["records"]
    vehicle.make_room()
    await vehicle.everything()
    assert not (await vehicle.status("collector", lambda status: True))["problem"]
