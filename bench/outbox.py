"""The outbox beside a plain file log, a restart with a gigabyte waiting, and its drain beside the SDK alone."""

import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.workload import ROOT, Workload
from edge.outbox import NewRecord, Outbox
from simulator import certificates
from simulator.device import free_address
from simulator.faults import Faults, FaultyHub
from simulator.workload import Workload as WorkloadSocket

DISK_MB, PAYLOAD_BYTES = 320, 32 << 20
SHAPES = ((4096, 1), (4096, 16), (4096, 64), (65_536, 1), (65_536, 8))  # record bytes, records a commit
BACKLOG_BYTES, BACKLOG_RECORD_BYTES = 1 << 30, 8000
QUOTA_BYTES = 3 << 30
DRAINS = ((0, 5), (0.05, 3))  # PUBACKs come so many seconds late, as a distant hub's do; rounds
WARM_BYTES, ROUND_BYTES = 10 << 20, 100 << 20
KEY = b"the module's key"

FILL = """
import os, sys
from edge.outbox import NewRecord, Outbox
total, size = int(sys.argv[2]), int(sys.argv[3])
outbox, made = Outbox(sys.argv[1], int(sys.argv[4])), 0
while made < total:
    outbox.append([NewRecord(5, "drive", bytes(32), os.urandom(size)) for _ in range(256)])
    made += 256 * size
os.kill(os.getpid(), 9)
"""
OPEN = """
import sys, time
from edge.outbox import Outbox
began = time.perf_counter()
outbox = Outbox(sys.argv[1], int(sys.argv[2]))
found = outbox.peek(1 << 17, 1000)
print(time.perf_counter() - began, len(found), outbox.stats().bytes)
outbox.close()
"""
SDK_ALONE = """
import asyncio, os, sys
from azure.iot.device import Message
from azure.iot.device.aio import IoTHubModuleClient
async def send(client, body):
    while True:
        message = Message(body)
        message.content_type = "application/x-protobuf"
        await client.send_message(message)
async def main():
    client = IoTHubModuleClient.create_from_edge_environment()
    await client.connect()
    body = os.urandom(int(sys.argv[1]))
    await asyncio.gather(*(send(client, body) for _ in range(int(sys.argv[2]))))
asyncio.run(main())
"""


def figures(load: Workload, folder: Path) -> Iterator[dict[str, Any]]:
    yield from _wear()
    backlog = folder / "backlog"
    subprocess.run(
        [sys.executable, "-c", FILL, str(backlog), str(BACKLOG_BYTES), str(BACKLOG_RECORD_BYTES), str(QUOTA_BYTES)],
        cwd=ROOT,
        check=False,
    )
    for name in ("killed", "closed"):
        _forget_cached(backlog / "outbox.db")
        seconds, _, waiting = _output(OPEN, str(backlog), str(QUOTA_BYTES))
        yield {
            "figure": f"outbox: opened to first records, file not cached, {name} with 1 GB waiting",
            "waiting_mb": waiting / 1e6,
            "seconds": seconds,
            "asked_at_most": 0.5,
        }
    for number, (delay_s, rounds) in enumerate(DRAINS):
        yield asyncio.run(_drain(backlog, folder / f"hub{number}", delay_s, rounds))
    shutil.rmtree(backlog)


# Wear


class Written(NamedTuple):
    bytes: int
    flushes: int


def _wear() -> Iterator[dict[str, Any]]:
    """What reaches the device, journal and all, of an ext4 on a loop device."""
    try:
        with _disk() as (disk, written):
            for size, count in SHAPES:
                own = _measure(disk / "outbox", written, lambda at: _outbox_run(at, size, count))  # noqa: B023
                log = _measure(disk / "log", written, lambda at: _log_run(at, size, count))  # noqa: B023
                megabytes = PAYLOAD_BYTES / 1e6
                yield {
                    "figure": f"outbox: {count} x {size} bytes a commit, stored and acknowledged",
                    "write_amplification": own.bytes / PAYLOAD_BYTES,
                    "flushes_per_mb": own.flushes / megabytes,
                    "against": "a file that is only appended to, with fdatasync",
                    "against_write_amplification": log.bytes / PAYLOAD_BYTES,
                    "against_flushes_per_mb": log.flushes / megabytes,
                }
    except (OSError, subprocess.CalledProcessError) as error:
        yield {"figure": "outbox: write amplification", "skipped": f"needs root and a loop device: {error}"}


@contextmanager
def _disk() -> Iterator[tuple[Path, Callable[[], Written]]]:
    with tempfile.TemporaryDirectory() as place:
        image, mounted = Path(place) / "image", Path(place) / "disk"
        with image.open("wb") as file:
            file.truncate(DISK_MB << 20)
        mounted.mkdir()
        device = _run("losetup", "--find", "--show", str(image)).strip()
        try:
            _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device)
            _run("mount", device, str(mounted))
            try:
                yield mounted, lambda: _counters(Path("/sys/block") / Path(device).name / "stat")
            finally:
                _run("umount", str(mounted))
        finally:
            _run("losetup", "--detach", device)


def _counters(stat: Path) -> Written:
    """Documentation/block/stat.rst: the 7th field counts sectors of 512 bytes, the 16th flushes."""
    fields = stat.read_text().split()
    return Written(int(fields[6]) * 512, int(fields[15]))


def _measure(place: Path, written: Callable[[], Written], run: Callable[[Path], None]) -> Written:
    place.mkdir()
    os.sync()
    before = written()
    run(place)
    os.sync()
    after = written()
    shutil.rmtree(place)
    return Written(after.bytes - before.bytes, after.flushes - before.flushes)


def _outbox_run(place: Path, size: int, count: int) -> None:
    """Stored as the collector does, acknowledged in messages of 128 KB as the uplink does without a backlog."""
    with Outbox(place, 256 << 20) as outbox:
        for _ in range(PAYLOAD_BYTES // (size * count)):
            outbox.append([NewRecord(5, "drive", bytes(32), os.urandom(size)) for _ in range(count)])
        while records := outbox.peek(1 << 17, 1000):
            outbox.ack([record.sequence for record in records])


def _log_run(place: Path, size: int, count: int) -> None:
    with (place / "log").open("wb", buffering=0) as file:
        for _ in range(PAYLOAD_BYTES // (size * count)):
            file.write(b"".join(os.urandom(size) for _ in range(count)))
            os.fdatasync(file.fileno())


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# Restart


def _forget_cached(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _output(script: str, *arguments: str) -> list[float]:
    command = [sys.executable, "-c", script, *arguments]
    return [
        float(word)
        for word in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ]


# Drain


class Rate(NamedTuple):
    """cpu_ms: of the sender, for each megabyte; a busy machine changes it less."""

    mb_per_s: float
    cpu_ms: float


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Sink(FaultyHub):
    """Acknowledges and counts, stores nothing: what is measured is the sender."""

    def __init__(self, *arguments: Any, delay_s: float) -> None:
        super().__init__(*arguments)
        self.faults = Faults(puback_delay_s=delay_s)
        self.store.store = lambda *message: None  # type: ignore[method-assign]

    async def rate(self, sender: int) -> "Rate":
        """Once it flows."""
        await self._until(self.counters["body_bytes"] + WARM_BYTES)
        began, first, cpu_s = time.perf_counter(), self.counters["body_bytes"], _cpu_s(sender)
        await self._until(first + ROUND_BYTES)
        megabytes = (self.counters["body_bytes"] - first) / 1e6
        return Rate(megabytes / (time.perf_counter() - began), 1000 * (_cpu_s(sender) - cpu_s) / megabytes)

    async def _until(self, count: int) -> None:
        while self.counters["body_bytes"] < count:
            await self.changed(60)


async def _drain(backlog: Path, folder: Path, delay_s: float, rounds: int) -> dict[str, Any]:
    """In turn: a fresh uplink on the backlog, and a fresh client of the SDK that sends as many bytes at a time."""
    async with _sink(folder, delay_s) as (hub, environment):
        hub.patch_desired("uplink", {"retry_min_s": 0.05, "report_s": 3600})
        environment = {**environment, "BORDNETZ_OUTBOX": str(backlog), "BORDNETZ_OUTBOX_BYTES": str(QUOTA_BYTES)}
        sdk = [sys.executable, "-c", SDK_ALONE, str(130_000), "16"]
        uplink = [sys.executable, "-m", "modules.uplink.main"]
        pairs, fills, first_s = [], [], []
        for _ in range(rounds):
            alone, _ = await _rate(hub, sdk, environment, None)
            units, count = hub.counters["units"], hub.counters["body_bytes"]
            own, status = await _rate(hub, uplink, environment, "uplink")
            fills.append((hub.counters["body_bytes"] - count) / (4096 * (hub.counters["units"] - units)))
            first_s.append(status["first_sent_s"])
            pairs.append((own, alone))
        left = status["outbox"]["bytes"]
    return {
        "figure": f"uplink: drain of a 1 GB backlog, {rounds} x {ROUND_BYTES >> 20} MiB of it, {delay_s} s to the hub",
        "mb_per_s": statistics.median(own.mb_per_s for own, _ in pairs),
        "cpu_ms_per_mb": min(own.cpu_ms for own, _ in pairs),
        "against": "azure-iot-device alone, 16 at a time, 130 kB each",
        "against_mb_per_s": statistics.median(alone.mb_per_s for _, alone in pairs),
        "against_cpu_ms_per_mb": min(alone.cpu_ms for _, alone in pairs),
        "ratio": statistics.median(own.mb_per_s / alone.mb_per_s for own, alone in pairs),
        "asked": 0.8,
        "fill": min(fills),
        "fill_asked": 0.97,
        "process_start_to_first_acknowledged_s": statistics.median(first_s),
        "left_mb": left / 1e6,
    }


async def _rate(
    hub: Sink, command: list[str], environment: dict[str, str], module: str | None
) -> tuple[Rate, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        rate = await hub.rate(process.pid)
        status = (await hub.call(module, "getStatus"))[1] if module else {}
    finally:
        process.send_signal(signal.SIGTERM if module else signal.SIGKILL)
        await process.wait()
    return rate, status


@asynccontextmanager
async def _sink(folder: Path, delay_s: float) -> Any:
    address = free_address()
    _, certificate, key = certificates.make(folder, address, [])
    hub = Sink("hub.example", "car", address, folder, {"uplink": KEY}, delay_s=delay_s)
    socket = WorkloadSocket("hub.example/car/uplink", KEY, certificates.Authority(folder))
    await hub.start(certificate, key)
    await socket.start(folder / "workload.sock")
    names = {
        "IOTHUBHOSTNAME": "hub.example",
        "GATEWAYHOSTNAME": address,
        "DEVICEID": "car",
        "MODULEID": "uplink",
        "MODULEGENERATIONID": "1",
        "WORKLOADURI": f"unix://{folder}/workload.sock",
        "APIVERSION": "2022-08-03",
    }
    try:
        yield hub, {**os.environ, **{f"IOTEDGE_{name}": value for name, value in names.items()}}
    finally:
        await socket.stop()
        await hub.stop()
