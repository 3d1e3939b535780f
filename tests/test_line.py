"""The whole line: real modules as processes, the real client over TLS, tables at the end; and kills in between."""

import asyncio
import collections
import csv
import gzip
import json
import math
import os
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cy_core.frames import Frames
from edge.database import load_databases
from edge.logs import open_log
from edge.manifest import DecoderManifest
from fleet import table
from fleet.audit import Audit
from fleet.decode import decode
from fleet.log import decode_log
from fleet.rows import natural as natural_of
from simulator import deployment
from simulator.demo import ROOT, VEHICLE_FOLDER, everything
from simulator.device import EdgeDevice
from simulator.hub import NoAnswer
from simulator.vehicle import databases
from simulator.vehicle.drive import write_log

pytestmark = pytest.mark.process

DATA = Path(os.environ.get("BORDNETZ_DATA", ROOT.parent / "shared" / "data"))
RAV4 = DATA / "toyota_rav4_2017"
needs_rav4 = pytest.mark.skipif(not RAV4.is_dir(), reason=f"no recordings at {DATA}: set BORDNETZ_DATA")

DURABLE_S = 0.5
SAMPLE = ["time_us", "bus", "message", "signal", "raw"]


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DecoderManifest]:
    path = tmp_path_factory.mktemp("drive") / "drive.log"
    write_log(path, 20, 7)
    return path, load_databases(databases())


def deployed(source: str, **collector: Any) -> dict[str, Any]:
    """The project's own deployment, with another source and other settings of the collector."""
    manifest = deployment.expand(ROOT / "deployment.template.json")
    content = manifest["modulesContent"]
    module = content["$edgeAgent"]["properties.desired"]["modules"]["collector"]
    module["env"]["BORDNETZ_SOURCE"]["value"] = source
    content["collector"]["properties.desired"].update(collector)
    content["uplink"]["properties.desired"].update(latency_s=0.2, retry_min_s=0.1, message_units=2)
    return manifest


async def status(device: EdgeDevice, module: str) -> dict[str, Any]:
    """What the module says of itself, once it is there to say something."""
    while True:
        try:
            return (await device.hub.call(module, "getStatus", timeout_s=5))[1]
        except NoAnswer:
            await device.hub.changed(60)


async def until_sent(device: EdgeDevice) -> dict[str, Any]:
    """Wait for the end of the source and an empty outbox; return the collector's status."""
    async with asyncio.timeout(90):
        while True:
            collector, uplink = await status(device, "collector"), await status(device, "uplink")
            if collector["source"]["state"] == "finished" and not uplink["outbox"]["records"]:
                return collector
            await asyncio.sleep(0.05)


def samples(rows: pa.Table) -> collections.Counter[tuple[Any, ...]]:
    return collections.Counter(zip(*rows.select(SAMPLE).to_pydict().values(), strict=True))


def table_of(device: EdgeDevice, manifest: DecoderManifest, folder: Path) -> tuple[pa.Table, Audit]:
    audit = decode([device.hub.messages_dir], {manifest.hash: manifest}, folder)
    return table.read(folder), audit


def decoded(log: Path, manifest: DecoderManifest, folder: Path) -> pa.Table:
    """The log's samples without any vehicle in between."""
    decode_log(log, manifest, folder / "truth.parquet")
    return pa.parquet.read_table(folder / "truth.parquet")


def put(device: EdgeDevice, manifest: DecoderManifest, log: Path | None = None) -> None:
    folder = device.host_path(VEHICLE_FOLDER)
    manifest.save(folder / "vehicle.manifest")
    if log is not None:
        shutil.copyfile(log, folder / log.name)


async def test_modules_killed_again_and_again_lose_nothing_and_send_nothing_twice(
    drive: tuple[Path, DecoderManifest], tmp_path: Path
) -> None:
    log, manifest = drive
    # Small blocks, so that every kill finds records on every part of the way.
    source, campaigns = f"replay:{VEHICLE_FOLDER}/{log.name}?speed=4", {"drive": everything(manifest)}
    document = deployed(source, campaigns=campaigns, block_frames=400, durable_s=0.1)
    async with EdgeDevice(document, tmp_path / "device", modules_root=ROOT, restart_scale=0.002) as device:
        put(device, manifest, log)
        device.start_modules()
        killed = {"collector": 0, "uplink": 0}
        for module in ("collector", "uplink") * 4:
            before = device.hub.counters["messages"]
            async with asyncio.timeout(60):
                while device.hub.counters["messages"] < before + 2:
                    await device.hub.changed(60)
            killed[module] += await device.kill(module, signal.SIGKILL) == -signal.SIGKILL
        await until_sent(device)
    rows, audit = table_of(device, manifest, tmp_path / "table")
    assert min(killed.values()) >= 3, "a kill may find a module that is just being started again"
    assert audit.ok, str(audit)
    assert samples(rows) == samples(decoded(log, manifest, tmp_path))


async def test_a_kill_on_a_live_bus_costs_at_most_durable_s_and_the_audit_says_how_much(
    drive: tuple[Path, DecoderManifest], tmp_path: Path
) -> None:
    log, manifest = drive
    document = deployed(f"stream:{VEHICLE_FOLDER}/bus.sock", durable_s=DURABLE_S)
    async with EdgeDevice(document, tmp_path / "device", modules_root=ROOT, restart_scale=0.002) as device:
        put(device, manifest)
        path = tmp_path / "bus.sock"
        device.host_path(VEHICLE_FOLDER).joinpath("bus.sock").symlink_to(path)
        device.start_modules()
        async with asyncio.timeout(60):
            while True:
                if (await status(device, "collector"))["campaigns"]:
                    break
                await asyncio.sleep(0.05)
        with LiveBus(path, log, manifest.buses) as bus:
            async with asyncio.timeout(60):
                while device.hub.counters["messages"] < 3:
                    await device.hub.changed(60)
            stored = (await status(device, "collector"))["totals"]["frames"]
            await device.kill("collector", signal.SIGKILL)
            await asyncio.to_thread(bus.ended.wait, 60)
            async with asyncio.timeout(60):
                while True:
                    collector, uplink = await status(device, "collector"), await status(device, "uplink")
                    if not uplink["outbox"]["records"] and collector["totals"]["frames"] and bus.is_drained(collector):
                        break
                    await asyncio.sleep(0.1)
    rows, audit = table_of(device, manifest, tmp_path / "table")
    [stream] = audit.streams
    assert audit.ok, str(audit)
    assert stored < stream.frames
    assert stream.frames + stream.missing_frames == bus.frames - bus.before
    # Beside what nobody listened to while the collector was down, at most durable_s (and a piece) of traffic is gone.
    lost = stream.missing_frames - bus.unheard
    assert 0 < lost < 2 * DURABLE_S * bus.frames_per_second
    assert samples(rows) <= samples(decoded(log, manifest, tmp_path))


class LiveBus:
    """Plays a log at its own pace into whoever connects; goes on when nobody listens, as a bus does."""

    def __init__(self, path: Path, log: Path, buses: tuple[str, ...]) -> None:
        frames = Frames()
        while open_log(log, buses).read(frames, 1 << 20):
            pass
        self._frames = frames
        self.frames = len(frames)
        self._buses = buses
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self.ended = threading.Event()
        self.before = self.unheard = 0  # frames before anybody listened, and while nobody did again
        self.frames_per_second = 0.0
        self._position = 0
        self._was_heard = False

    def __enter__(self) -> "LiveBus":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        self._thread.join(10)

    def is_drained(self, collector: dict[str, Any]) -> bool:
        return bool(collector["source"]["frames"] == self.frames)

    def _pieces(self) -> Iterator[Frames]:
        """20 ms each."""
        times = [frame[0] for frame in self._frames]
        start = 0
        for at, time_us in enumerate(times):
            if time_us - times[start] >= 20_000:
                yield self._frames.slice(start, at)
                start = at
        yield self._frames.slice(start, len(times))

    def _greet(self) -> socket.socket:
        """Raises BlockingIOError: nobody has connected."""
        client, _ = self._listener.accept()
        client.setblocking(True)
        hello = {"format": 1, "position": self._position, "buses": list(self._buses)}
        client.sendall(json.dumps(hello).encode() + b"\n")
        if not self._was_heard:
            self.before, self.unheard, self._was_heard = self.unheard, 0, True
        return client

    def _play(self) -> None:
        self._listener.setblocking(False)
        client: socket.socket | None = None
        pace = threading.Event()  # never set: waiting on it is the pace of the bus
        started = time.monotonic()
        for piece in self._pieces():
            pace.wait(0.004)
            try:
                client = client or self._greet()
                records, payloads = piece.to_bytes()
                client.sendall(struct.pack("<II", len(records) // 24, len(payloads) // 64) + records + payloads)
            except OSError:  # nobody there, or not any more
                client = None
                self.unheard += len(piece)
            self._position += len(piece)
        self.frames_per_second = self.frames / (time.monotonic() - started)
        self.ended.set()
        while client is not None and client.recv(1):
            pass


@pytest.fixture(scope="module")
def rav4() -> DecoderManifest:
    return load_databases({"can0": [RAV4 / "toyota_new_mc_pt_generated.dbc"], "can1": [RAV4 / "toyota_adas.dbc"]})


@needs_rav4
async def test_a_real_recording_through_the_line_equals_the_reference_decode_and_the_ground_truth(
    rav4: DecoderManifest, tmp_path: Path
) -> None:
    log = RAV4 / "rav4.log.gz"
    document = deployed(f"replay:{VEHICLE_FOLDER}/{log.name}", campaigns={"drive": everything(rav4)})
    async with EdgeDevice(document, tmp_path / "device", modules_root=ROOT) as device:
        put(device, rav4, log)
        device.start_modules()
        collector = await until_sent(device)
    rows, audit = table_of(device, rav4, tmp_path / "table")
    assert audit.ok, str(audit)
    assert (collector["source"]["frames"], rows.num_rows) == (98_800, 423_706)
    assert samples(rows) == samples(decoded(log, rav4, tmp_path))
    assert_equals_reference(rows, RAV4 / "rav4.ref.csv.gz", rav4)
    assert_equals_ground_truth(rows)


def assert_equals_reference(rows: pa.Table, reference: Path, manifest: DecoderManifest) -> None:
    """Every row of the reference is in the table as often as there, with its raw and physical value and label."""
    fields = {(m.bus, m.name, s.name): s for m in manifest.messages for s in m.signals}
    found: collections.Counter[tuple[Any, ...]] = collections.Counter()
    for time_us, bus, message, name, raw, value, label in zip(
        *rows.select([*SAMPLE, "value", "label"]).to_pydict().values(), strict=True
    ):
        natural = natural_of(fields[bus, message, name], raw, value)
        found[time_us, bus, message, name, *natural, label or ""] += 1
    wanted: collections.Counter[tuple[Any, ...]] = collections.Counter()
    with gzip.open(reference, "rt") as lines:
        for row in csv.DictReader(lines):
            place = int(row["timestamp_us"]), row["bus"], row["message"], row["signal"]
            wanted[*place, float(row["raw"]), float(row["physical"]), row["label"]] += 1
    assert wanted
    assert not wanted - found


def assert_equals_ground_truth(rows: pa.Table) -> None:
    """Wheel speeds and steering as published with the recording, decoded by others than cantools or us."""
    by_name: dict[str, dict[int, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for time_us, message, name, value in zip(
        *rows.select(["time_us", "message", "signal", "value"]).to_pydict().values(), strict=True
    ):
        if message in ("WHEEL_SPEEDS", "STEER_ANGLE_SENSOR"):
            by_name[name][time_us].append(value)
    checked: collections.Counter[str] = collections.Counter()
    with gzip.open(RAV4 / "ground_truth.csv.gz", "rt") as lines:
        for row in csv.DictReader(lines):
            time_us, quantity, value = int(row["timestamp_us"]), row["quantity"], float(row["value"])
            if quantity.startswith("wheel_speed"):
                ours = [speed / 3.6 for speed in by_name["WHEEL_SPEED_" + wheel_of(quantity)][time_us]]
            elif quantity == "steering_angle_deg":
                pairs = zip(by_name["STEER_ANGLE"][time_us], by_name["STEER_FRACTION"][time_us], strict=True)
                ours = [angle + fraction for angle, fraction in pairs]
            else:
                continue
            assert any(math.isclose(value, own, rel_tol=1e-12, abs_tol=1e-12) for own in ours), row
            checked[quantity.split("_")[0]] += 1
    assert checked["steering"] > 4_000
    assert checked["wheel"] > 19_000


def wheel_of(quantity: str) -> str:
    """`wheel_speed_front_left_mps` is of FL."""
    return "".join(word[0].upper() for word in quantity.split("_")[2:4])
