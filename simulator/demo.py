"""`bordnetz demo`: the whole line, offline, from the deployment template that goes to vehicles.

    drive or LOG ─► collector ─► outbox ─► uplink ─► hub ─► messages ─► table
                    └ processes, started from the expanded template ┘

What differs from a vehicle is said in one place, adapt(): the source is a replay, all signals are collected, and a
message does not wait to be filled.
"""

import asyncio
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from edge import manifest as manifests
from edge.campaign import is_private
from edge.errors import EdgeError, InputError
from edge.manifest import DecoderManifest
from fleet.audit import Audit
from fleet.decode import decode
from simulator import deployment
from simulator.device import EdgeDevice
from simulator.hub import Hub, NoAnswer

VEHICLE_FOLDER = "/var/lib/bordnetz"
ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 120.0  # without any progress
LOOK_SECONDS = 0.25
# A sample as samples for IoT Edge send it; message, signal and value come on top.
JSON_SAMPLE = '{"time":"2026-11-24T15:00:00.000000Z","name":".","value":}'

Say = Callable[[str], None]


class Summary(msgspec.Struct):
    """What went in, what it cost, and what came out."""

    frames: int
    samples: int
    rows: int
    messages: int
    wire_bytes: int
    json_bytes: int
    units: int
    seconds: float
    audit: Audit
    table: str
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Nothing was lost: every frame is in a block, and every sample in the table."""
        return self.audit.ok and not self.problems and self.audit.frames == self.frames and self.rows == self.samples

    def as_dict(self) -> dict[str, Any]:
        return {**msgspec.to_builtins(self), "ok": self.ok}

    def text(self) -> str:
        times = self.json_bytes / max(1, self.wire_bytes)
        lost = sum(len(outbox.gaps) for outbox in self.audit.outboxes)
        lost += sum(len(stream.holes) for stream in self.audit.streams) + self.audit.missing_frames
        gaps = "none" if not lost else f"{lost}: see {self.table}/_audit.json"
        lines = [
            f"frames in            {self.frames:>12,}",
            f"samples              {self.samples:>12,}",
            f"rows in the table    {self.rows:>12,}",
            f"messages             {self.messages:>12,}",
            f"bytes on the wire    {self.wire_bytes:>12,}   (MQTT, before TLS)",
            f"bytes a frame        {self.wire_bytes / max(1, self.frames):>12.2f}",
            f"bytes a sample       {self.wire_bytes / max(1, self.samples):>12.2f}",
            f"metered 4 KB units   {self.units:>12,}",
            f"as JSON per sample   {self.json_bytes:>12,}   bytes, {times:,.0f} times as many",
            f"gaps                 {gaps:>12}",
            f"time                 {self.seconds:>12.1f}   s from the first process to the table",
            f"table                {self.table}",
        ]
        return "\n".join([*lines, *self.problems])


def run(
    log: Path | None,
    manifest: Path | None,
    *,
    seconds: float = 60,
    seed: int = 1,
    out: Path = Path("out/demo"),
    template: Path | None = None,
    say: Say = lambda line: None,
) -> Summary:
    """Run the line once; out is emptied first. Raises InputError: what was given cannot be used."""
    if log and not log.is_file():
        raise InputError(log, "no such file", "give a recording")
    expanded = deployment.expand(template or ROOT / "deployment.template.json")
    _empty(out)
    recording, meaning = (log, manifests.load(manifest)) if log and manifest else _drive(out, seconds, seed, say)
    return asyncio.run(_run(adapt(expanded, recording, meaning), recording, meaning, out, say))


def _drive(out: Path, seconds: float, seed: int, say: Say) -> tuple[Path, DecoderManifest]:
    from edge.database import load_databases
    from simulator.vehicle import databases
    from simulator.vehicle.drive import write_log

    say(f"driving the simulated vehicle for {seconds:g} s (seed {seed})")
    path = out / "drive.log.gz"
    frames = write_log(path, seconds, seed, None)
    say(f"  {frames:,} frames on {', '.join(databases())} in {path}")
    return path, load_databases(databases())


def _empty(out: Path) -> None:
    marker = out / ".bordnetz-demo"
    if out.exists() and any(out.iterdir()) and not marker.exists():
        raise InputError(out, "is not empty, and no demo made it", "choose another folder with -o")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    marker.touch()


def adapt(manifest: dict[str, Any], recording: Path, meaning: DecoderManifest) -> dict[str, Any]:
    content = deployment.modules_content(manifest, Path("manifest"))
    collector = content["$edgeAgent"]["properties.desired"]["modules"]["collector"]
    collector["env"]["BORDNETZ_SOURCE"]["value"] = f"replay:{VEHICLE_FOLDER}/{recording.name}"
    collector["env"]["BORDNETZ_MANIFEST"]["value"] = f"{VEHICLE_FOLDER}/vehicle.manifest"
    content["collector"]["properties.desired"]["campaigns"] = {"drive": everything(meaning)}
    content["uplink"]["properties.desired"]["latency_s"] = 1
    return manifest


def everything(meaning: DecoderManifest) -> dict[str, Any]:
    """A campaign of all signals, in the form of a twin; identifiers of the vehicle too, which have to be named."""
    private: dict[str, Any] = {name.replace(".", "/"): {} for name, _, _ in meaning.names() if is_private(name)}
    return {"signals": {"*": {}, **private}, "priority": 5}


async def _run(manifest: dict[str, Any], recording: Path, meaning: DecoderManifest, out: Path, say: Say) -> Summary:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with EdgeDevice(manifest, out / "device", modules_root=ROOT) as device:
        folder = device.host_path(VEHICLE_FOLDER)
        meaning.save(folder / "vehicle.manifest")
        shutil.copyfile(recording, folder / recording.name)
        started = time.monotonic()
        say(f"starting {', '.join(device.modules)} from the deployment template, with a hub on {device.address}:8883")
        device.start_modules()
        line = asyncio.create_task(follow(device, out, say))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([line, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not line.done():
            line.cancel()
            raise Interrupted("interrupted; the modules were stopped, and no table was written")
        collected = line.result()
    say("decoding what the hub received")
    audit = decode([device.hub.messages_dir], {meaning.hash: meaning}, out / "table")
    rows, json_bytes = _measure(out / "table")
    return Summary(
        frames=collected["source"]["frames"],
        samples=collected["totals"]["samples"],
        rows=rows,
        messages=device.hub.counters["messages"],
        wire_bytes=device.hub.counters["wire_bytes"],
        json_bytes=json_bytes,
        units=device.hub.counters["units"],
        seconds=time.monotonic() - started,
        audit=audit,
        table=str(out / "table"),
        problems=[problem for problem in [collected["source"]["problem"]] if problem],
    )


class Interrupted(EdgeError):
    """A person stopped it."""


async def follow(device: EdgeDevice, out: Path, say: Say) -> dict[str, Any]:
    """Wait until the source has ended and the outbox is empty; return what the collector says of itself."""
    last: tuple[int, ...] = ()
    moved = time.monotonic()
    while True:
        collector, uplink = await status(device.hub, "collector"), await status(device.hub, "uplink")
        if collector and uplink:
            now = (collector["source"]["frames"], uplink["outbox"]["records"], uplink["sent"]["records"])
            if now != last:
                say(f"  {now[0]:>9,} frames collected, {now[2]:>4} records sent, {now[1]:>4} waiting")
                last, moved = now, time.monotonic()
            if collector["source"]["state"] == "finished" and not uplink["outbox"]["records"]:
                return collector
        for module in device.modules.values():
            if module.state == "failed" or module.restarts > 3:
                raise EdgeError(f"module {module.name} does not stay up: see {out}/device/logs/{module.name}.log")
        if time.monotonic() - moved > PATIENCE_SECONDS:
            raise EdgeError(f"nothing has moved for {PATIENCE_SECONDS:.0f} s: see {out}/device/logs")
        await asyncio.sleep(LOOK_SECONDS)


async def status(hub: Hub, module: str) -> dict[str, Any] | None:
    """What a module says of itself; None while it cannot."""
    with suppress(NoAnswer):
        code, answer = await hub.call(module, "getStatus", timeout_s=5)
        if code == 200 and isinstance(answer, dict):
            return answer
    return None


def _measure(table: Path) -> tuple[int, int]:
    """Rows of the table, and the bytes that they would take as one JSON message each."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = json_bytes = 0
    for path in table.rglob("*.parquet"):
        for batch in pq.ParquetFile(path).iter_batches(columns=["message", "signal", "value"]):
            rows += batch.num_rows
            json_bytes += len(JSON_SAMPLE) * batch.num_rows
            for name in batch.schema.names:
                json_bytes += pc.sum(pc.binary_length(batch[name].cast(pa.string()))).as_py() or 0
    return rows, json_bytes
