"""A made-up fleet: messages as IoT Hub's routing stores them, with all that goes wrong on the way, and the truth.

    <out>/messages/hub/00/2026/11/24/15/07.json     in the order in which the cloud had them
    <out>/manifests/*.manifest                      the second is in use from the middle on
    <out>/truth.json                                every record: what it holds, when it was, what became of it

A vehicle makes a block every ten seconds, or at another Pace. Its clock is unknown when it boots and set later; it is
offline for a while and sends what waited afterwards, newest boot first; some messages come twice; some records are
evicted, and the ledger says so. The same seed gives the same files. Frames are simple here (counters and ramps, so that
the truth is a formula): what real traffic looks like is the business of simulator/vehicle.
"""

import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec
import numpy as np

from cy_core.frames import Frames
from edge import block as blocks
from edge.decoder import Decoder
from edge.errors import InputError
from edge.manifest import DecoderManifest, Message, Signal
from edge.message import Block, Clock, Counters, Coverage, Eviction, Quality, Record, pack

START_US = 1_795_471_200_000_000  # 2026-11-23 22:00 UTC: a drive of some hours crosses midnight
RECORDS_IN_MESSAGE = 3
SIGNALS = ("SPEED", "COUNTER", "GEAR")  # of a frame in the table, in the order of the manifest
FRAME = np.dtype(  # docs/formats/frame.md, with the signals of the manifest as its data
    {
        "names": ["time_us", "can_id", "length", *SIGNALS],
        "formats": ["<i8", "<u4", "u1", "<u2", "<u4", "u1"],
        "offsets": [0, 8, 13, 16, 18, 22],
        "itemsize": 24,
    }
)


class Pace(NamedTuple):
    """From frame to frame, and of how much time a block is."""

    period_us: int = 100_000
    block_us: int = 10_000_000

    @property
    def frames(self) -> int:
        return self.block_us // self.period_us


class TrueRecord(msgspec.Struct, array_like=True):
    """Frames first..end-1 of the vehicle, the first at first_us (UTC), each a period after the one before."""

    outbox: str
    sequence: int
    first: int
    end: int
    first_us: int
    manifest: int  # 0 or 1
    evicted: bool


class TrueVehicle(msgspec.Struct):
    vehicle: str
    records: list[TrueRecord] = []
    repeats: int = 0  # records that are there a second time
    period_us: int = Pace().period_us

    def rows(self) -> Iterator[tuple[int, str, float]]:
        """What the table must hold, in its order: (time_us, signal, value)."""
        for record in self.records:
            if not record.evicted:
                for n in range(record.first, record.end):
                    time_us = record.first_us + self.period_us * (n - record.first)
                    for name, value in zip(SIGNALS, values(n, record.manifest), strict=True):
                        yield time_us, name, value


class Truth(msgspec.Struct):
    vehicles: list[TrueVehicle] = []
    messages: int = 0
    samples: int = 0


def manifests() -> tuple[DecoderManifest, DecoderManifest]:
    """The second has another factor for the speed."""
    return _manifest(0.5), _manifest(0.25)


def _manifest(factor: float) -> DecoderManifest:
    signals = (
        Signal("SPEED", 0, 16, factor=factor, unit="km/h"),
        Signal("COUNTER", 16, 32),
        Signal("GEAR", 48, 4, labels={0: "P", 1: "R", 2: "N", 3: "D"}),
    )
    return DecoderManifest(("can0",), (Message("can0", 0x100, "DRIVE", 8, signals=signals),))


def values(n: int, manifest: int) -> tuple[float, float, float]:
    """Of frame n, in the order of SIGNALS."""
    return (n * 7 % 1000) * (0.5, 0.25)[manifest], float(n), float(n // 50 % 4)


def write(
    out: Path,
    vehicles: int,
    hours: float,
    seed: int,
    progress: Callable[[float], None] = lambda part: None,
    pace: Pace | None = None,
) -> Truth:
    """Raises InputError: out is not empty, or cannot be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(out, "is not empty", "give a new folder")
    truth = Truth()
    try:
        (out / "manifests").mkdir(parents=True)
        for number, manifest in enumerate(manifests()):
            manifest.save(out / f"manifests/{number}.manifest")
        for number in range(vehicles):
            vehicle = _Vehicle(f"vehicle-{number:05}", hours, Random(f"{seed} {number}"), pace or Pace())
            _store(out / "messages/hub" / f"{number % 4:02}", vehicle.lines())
            truth.vehicles.append(vehicle.truth)
            truth.messages += vehicle.messages
            truth.samples += sum(len(SIGNALS) * (r.end - r.first) for r in vehicle.truth.records if not r.evicted)
            progress((number + 1) / vehicles)
        (out / "truth.json").write_bytes(msgspec.json.encode(truth))
    except OSError as error:
        raise InputError(out, f"cannot be written ({error.strerror})", "choose another place") from error
    return truth


def read_truth(out: Path) -> Truth:
    return msgspec.json.decode((out / "truth.json").read_bytes(), type=Truth)


def _store(folder: Path, lines: Iterator[tuple[int, bytes]]) -> None:
    """As routing does it: a file a minute, by the time at which the hub had the message."""
    of_minute: dict[str, list[bytes]] = {}
    for enqueued_us, line in lines:
        name = datetime.fromtimestamp(enqueued_us // 1_000_000, UTC).strftime("%Y/%m/%d/%H/%M.json")
        of_minute.setdefault(name, []).append(line)
    for name, found in of_minute.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.writelines(found)


class _Vehicle:
    def __init__(self, vehicle: str, hours: float, random: Random, pace: Pace) -> None:
        self.truth = TrueVehicle(vehicle, period_us=pace.period_us)
        self.messages = 0
        self._random = random
        self._pace = pace
        self._count = max(1, int(hours * 3_600_000_000 // pace.block_us))
        self._outbox = random.randbytes(16)
        self._decoders = [Decoder(manifest) for manifest in manifests()]

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(when the hub had it, line), in that order but for what is sent after an outage."""
        waiting: list[tuple[TrueRecord, Record]] = []
        evictions: list[Eviction] = []
        offline_until, now_us = 0, START_US
        for record, body in self._records():
            now_us = record.first_us + self._pace.block_us
            self.truth.records.append(record)
            waiting.append((record, body))
            if now_us >= offline_until and self._random.random() < 0.01:
                offline_until = now_us + self._random.randrange(60, 900) * self._pace.block_us // 10
            if now_us < offline_until:
                evictions += self._evict(waiting, now_us)
            elif len(waiting) >= RECORDS_IN_MESSAGE or record.manifest != waiting[0][0].manifest:
                yield from self._send(waiting, evictions, now_us)
                waiting, evictions = [], []
        yield from self._send(waiting, evictions, now_us)

    def _records(self) -> Iterator[tuple[TrueRecord, Record]]:
        """A vehicle boots anew at times; its clock is set some blocks later, and it does not know before."""
        boot_id, boot_us, blind = b"", 0, 0
        for n in range(self._count):
            at_us = START_US + n * self._pace.block_us
            if n == 0 or (blind < 0 and self._random.random() < 0.005):  # not before anyone knew the time
                boot_id, boot_us = self._random.randbytes(16), at_us - self._random.randrange(1, 20) * 1_000_000
                blind = self._random.randrange(0, 20)
            known = blind <= 0 or n == self._count - 1
            blind = 0 if n == self._count - 1 else blind - 1
            clock = Clock(boot_id, boot_us, Quality.SYNCHRONISED) if known else self._wrong(boot_id)
            manifest = int(n >= self._count // 2)
            first = n * self._pace.frames
            end = first + self._pace.frames
            record = TrueRecord(self._outbox.hex(), n + 1, first, end, at_us, manifest, False)
            yield record, Record(n + 1, 5, "drive", self._block(record, clock, at_us - boot_us))

    def _wrong(self, boot_id: bytes) -> Clock:
        """1970, or a year or so off."""
        off_us = self._random.choice([0, START_US - 31_536_000_000_000])
        return Clock(boot_id, off_us, self._random.choice([Quality.UNKNOWN, Quality.SYSTEM]))

    def _block(self, record: TrueRecord, clock: Clock, since_boot_us: int) -> bytes:
        n = np.arange(record.first, record.end)
        made = np.zeros(len(n), FRAME)
        made["time_us"] = since_boot_us + self._pace.period_us * (n - record.first)
        made["can_id"], made["length"] = 0x100, 8
        made["SPEED"], made["COUNTER"], made["GEAR"] = n * 7 % 1000, n, n // 50 % 4
        frames = Frames()
        frames.extend(made.tobytes())
        columns = self._decoders[record.manifest].decode_batch(frames)
        coverage = Coverage("socketcan:can0", record.first, record.end)
        return Block(blocks.encode(columns), clock, coverage, Counters(samples=columns.samples())).encode()

    def _evict(self, waiting: list[tuple[TrueRecord, Record]], now_us: int) -> list[Eviction]:
        """The quota is small. But a clock that is known stays, or nobody would ever know the time."""
        if len(waiting) < 12 or self._random.random() < 0.5:
            return []
        place = self._random.randrange(len(waiting) - 1)
        record, _ = waiting[place]
        clock = Block.decode(waiting[place][1].body).clock
        if clock.quality == Quality.SYNCHRONISED:
            return []
        del waiting[place]
        record.evicted = True
        return [Eviction(record.sequence, record.sequence, 1, "drive", "quota", now_us)]

    def _send(
        self, waiting: list[tuple[TrueRecord, Record]], evictions: list[Eviction], now_us: int
    ) -> Iterator[tuple[int, bytes]]:
        """All that waits, in messages of one manifest each; the newest first, as after an outage with priorities."""
        parts: list[list[tuple[TrueRecord, Record]]] = []
        for one in waiting:
            if not parts or len(parts[-1]) == RECORDS_IN_MESSAGE or parts[-1][0][0].manifest != one[0].manifest:
                parts.append([])
            parts[-1].append(one)
        for number, part in enumerate(reversed(parts)):
            line = self._line(part, evictions if not number else [], now_us + number * 20_000)
            yield now_us + number * 20_000, line
            if self._random.random() < 0.05:  # the acknowledgement was lost
                self.truth.repeats += len(part)
                again_us = now_us + self._random.randrange(1, 100) * 1_000_000
                yield again_us, self._line(part, [], again_us)

    def _line(self, part: list[tuple[TrueRecord, Record]], evictions: list[Eviction], enqueued_us: int) -> bytes:
        self.messages += 1
        name = self.truth.vehicle
        manifest = bytes.fromhex(self._decoders[part[0][0].manifest].manifest.hash)
        body = pack(name, self._outbox, manifest, [record for _, record in part], evictions)
        when = datetime.fromtimestamp(enqueued_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")
        system = {
            "connectionDeviceId": name,
            "connectionModuleId": "uplink",
            "contentType": "application/x-protobuf",
            "enqueuedTime": when,
        }
        body_text = base64.b64encode(body).decode()
        line = {"EnqueuedTimeUtc": when, "Properties": {}, "SystemProperties": system, "Body": body_text}
        return json.dumps(line).encode() + b"\n"
