"""L6: a drive. Both real modules, a real broker over TLS, a mobile network between them, and everything fails.

    collector ─► outbox on a small disk ─► uplink ─► TLS ─► link: LTE, 2G, tunnels, parking ─► mosquitto ─► receiver
       └──────────── attempted, acknowledged ──► history ◄── delivered, evicted ──────────────────┘

SIGKILL for both modules again and again, the broker restarted, the disk filled and freed, the modules' wall clock
jumping by decades. Then all is well again, the recording ends, and everything has to arrive within a bound.

Every other drive kills the broker, too, while the receiver is away. It forgets what it has acknowledged, so only
`confirm` helps: the receiver says what has come, and the rest comes again, behind what is newer. Of those drives the
order (claim c) is not asked. One without `confirm` has to be caught.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from edge.doctor import STATUS_FILE
from edge.errors import EdgeError
from edge.outbox import Outbox, Stats
from simulator.simulate import drive as make_recording
from tests.crash.history import History, read, settle, validate
from tests.crash.layer import Options, Result, missing, workplace
from tests.crash.link import CLOUD, PROFILES
from tests.mosquitto import Broker

DRAIN_S = 90.0
DISK = "24m"
QUOTA_BYTES = 8 << 20
MODULES = ("collector", "uplink")


def run(options: Options) -> Result:
    if os.geteuid() != 0:
        return Result(skipped="needs root, for network namespaces and a small disk")
    if lacking := missing(mosquitto="mosquitto", ip="iproute2", mount="mount"):
        return Result(skipped=lacking)
    if not Path("/dev/net/tun").exists():
        return Result(skipped="needs /dev/net/tun")
    seconds = 180.0 if options.long else 20.0
    drives = [(options.seed + n, seconds, n % 2 == 1) for n in range(6 if options.long else 2)]
    result = Result()
    with ProcessPoolExecutor(2) as pool:  # a drive waits more than it works
        without = pool.submit(_drive, options.seed, 8.0, kills_broker=True, confirms=False)
        for tried, losses in pool.map(_drive, *zip(*drives, strict=True)):
            result.losses += losses
            for what, count in tried.items():
                result.count(what, count)
        result.controls["without-confirm"] = bool(without.result()[1])
    return result


def _drive(seed: int, seconds: float, kills_broker: bool, confirms: bool = True) -> tuple[dict[str, int], list[str]]:
    """How often what was tried, and what is wrong afterwards."""
    with workplace() as folder, ExitStack() as stack:
        drive = Drive(folder, seed, seconds, stack, kills_broker, confirms)
        losses = drive.run(drive.faults if confirms else ["broker_killed"])
        return drive.tried, [f"L6 seed {seed}: {line}" for line in losses]


class Drive:
    """One drive; whatever it starts ends with the stack."""

    def __init__(
        self, folder: Path, seed: int, seconds: float, stack: ExitStack, kills_broker: bool, confirms: bool
    ) -> None:
        self.tried: dict[str, int] = {}
        self._kills_broker = kills_broker
        self._patience_s = 4.0 if confirms else 20.0  # for the broker to take something that it is to forget
        self._chance = random.Random(seed)
        self._seconds = seconds
        self._folder = folder
        self._history = History(folder / "history")
        vehicle, cloud = (stack.enter_context(_namespace(f"crash-{end}-{os.getpid()}")) for end in ("car", "cloud"))
        self._in_vehicle = ["ip", "netns", "exec", vehicle]
        in_cloud = ["ip", "netns", "exec", cloud]
        self._link = stack.enter_context(_process("tests.crash.link", vehicle, cloud, "--seed", str(seed)))
        _answer(self._link)
        self._broker = Broker(folder, CLOUD, in_cloud)
        self._broker.launch()
        stack.callback(self._broker.stop)
        certificate, key = self._broker.authority.issue("receiver")
        trust = [str(path) for path in (self._broker.authority.certificate, certificate, key, folder / "history")]
        receiver = ["tests.crash.receiver", CLOUD, str(self._broker.port), *trust]
        receiver += ["confirm"] if kills_broker and confirms else []
        self._receiver = stack.enter_context(_process(*receiver, prefix=in_cloud))
        _answer(self._receiver)
        self._disk = stack.enter_context(_small_disk(folder / "disk"))
        self._outbox = self._disk / "outbox"
        self._outbox.mkdir()
        self._environment = self._prepare(folder, seed)
        self._modules: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(self._end)

    def _prepare(self, folder: Path, seed: int) -> dict[str, str]:
        recording, manifest = make_recording(folder, self._seconds, seed, lambda line: None)
        manifest.save(folder / "manifest.json")
        certificate, key = self._broker.authority.issue("car")
        return os.environ | {
            "BORDNETZ_CLOUD": f"mqtts://{CLOUD}:{self._broker.port}",
            "BORDNETZ_VEHICLE": "car",
            "BORDNETZ_CA": str(self._broker.authority.certificate),
            "BORDNETZ_CERTIFICATE": str(certificate),
            "BORDNETZ_KEY": str(key),
            "BORDNETZ_OUTBOX": str(self._outbox),
            "BORDNETZ_OUTBOX_BYTES": str(QUOTA_BYTES),
            "BORDNETZ_MANIFEST": str(folder / "manifest.json"),
            "BORDNETZ_SOURCE": f"replay:{recording}?speed=1",
        }

    @property
    def faults(self) -> list[str]:
        """As often as they are to be."""
        broker = ["broker_killed"] * 3 if self._kills_broker else ["broker_restarted"]
        return [*["kill"] * 12, *["network"] * 5, "full_disk", *broker]

    def run(self, steps: list[str]) -> list[str]:
        """What is wrong afterwards."""
        end = time.monotonic() + self._seconds
        for module in MODULES:
            self._start(module)
        while time.monotonic() < end:
            step = self._chance.choice(steps)
            self._history.fault(step)
            self._count(step)
            getattr(self, f"_{step}")()
            self._wait(self._chance.uniform(0.1, 1.0))
        self._profile("parking")
        self._history.fault("the last one was here")
        return self._arrived()

    def _wait(self, seconds: float) -> None:
        """A module that gives up is started again, as the runtime does."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            for module, process in self._modules.items():
                if process.poll() is not None:
                    self._count(f"{module} gave up")
                    self._start(module)
            time.sleep(min(left, 0.1))

    def _arrived(self) -> list[str]:
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline and not self._is_drained():
            self._wait(0.3)
        self._end()
        with suppress(EdgeError), Outbox(self._outbox, QUOTA_BYTES) as outbox:
            left = outbox.stats().records
            settle(outbox, self._history)
            if not left:
                self._history.drained()
        events = read(self._folder / "history")
        delivered = [event for event in events if event.kind == "delivered"]
        self._count("records", len({(event.outbox, event.sequence) for event in delivered}))
        self._count("repeats", len(delivered) - self.tried["records"])
        self._count("evicted", max((event.count for event in events if event.kind == "counted"), default=0))
        return validate(events, DRAIN_S + 20, "abdef" if self._kills_broker else "abcdef")

    def _is_drained(self) -> bool:
        """Whether the collector is through with its recording, and the outbox is empty."""
        status = self._outbox / STATUS_FILE
        if not status.exists() or b'"finished"' not in status.read_bytes():
            return False
        stats = self._stats()
        return stats is not None and stats.records == 0

    def _wait_for_acknowledgement(self) -> None:
        """Until the broker has taken what was waiting, where the network lets it."""
        until, has_waited = time.monotonic() + self._patience_s, False
        while time.monotonic() < until:
            if (stats := self._stats()) is not None:
                waits = stats.records > stats.held
                if has_waited and not waits:
                    return
                has_waited = has_waited or waits
            self._wait(0.05)

    def _stats(self) -> Stats | None:
        """Of the outbox, from outside."""
        with suppress(EdgeError), Outbox(self._outbox, QUOTA_BYTES) as outbox:
            return outbox.stats()
        return None

    # Faults

    def _kill(self) -> None:
        module = self._chance.choice(MODULES)
        self._modules[module].kill()
        self._modules[module].wait()
        self._start(module)

    def _network(self) -> None:
        self._profile(self._chance.choice(sorted(PROFILES)))

    def _broker_killed(self) -> None:
        _tell(self._receiver, "leave")
        self._wait_for_acknowledgement()
        self._broker_restarted(kill=True)
        _tell(self._receiver, "come back")

    def _broker_restarted(self, kill: bool = False) -> None:
        self._broker.stop(kill)
        self._wait(self._chance.uniform(0, 1))
        self._broker.launch()

    def _full_disk(self) -> None:
        hog = self._disk / "hog"
        with suppress(OSError), hog.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        self._wait(self._chance.uniform(0.5, 2))
        hog.unlink(missing_ok=True)

    def _profile(self, name: str) -> None:
        _tell(self._link, name)

    # Processes

    def _start(self, module: str) -> None:
        command = [*self._in_vehicle, sys.executable, "-m", "tests.crash.module", module, str(self._folder / "history")]
        with (self._folder / f"{module}.log").open("ab") as log:
            self._modules[module] = subprocess.Popen(
                [*command, "--jumps", str(self._chance.randrange(1, 1 << 30))],
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def _end(self) -> None:
        for process in self._modules.values():
            process.kill()
            process.wait()

    def _count(self, what: str, number: int = 1) -> None:
        self.tried[what] = self.tried.get(what, 0) + number


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@contextmanager
def _process(*arguments: str, prefix: list[str] | None = None) -> "Iterator[subprocess.Popen[bytes]]":
    command = [*(prefix or []), sys.executable, "-m", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _tell(process: "subprocess.Popen[bytes]", line: str) -> None:
    assert process.stdin
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()
    _answer(process)


def _answer(process: "subprocess.Popen[bytes]") -> None:
    stream: IO[bytes] | None = process.stdout
    assert stream
    if stream.read(1) != b".":
        raise RuntimeError(f"{process.args} has ended")
