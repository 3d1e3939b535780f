"""edgeHub's routes and its store-and-forward queues, as one device's messages go through them.

    message ──routes──► $upstream     ──► the cloud, or a queue while the upstream is cut
                    └─► module/input  ──► a queue, then to the module: one at a time, each awaiting its PUBACK

A queue is a folder with a file for each message, written before its PUBACK goes out. A message goes to an endpoint
once, at the best priority of the routes that take it there. Lower numbers are sent first; within a priority the order
is kept. What has outlived its time to live is skipped, and counted.
"""

import bisect
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from simulator.condition import UNDEFINED
from simulator.routes import UPSTREAM, Route, source_of
from simulator.tasks import Tasks
from simulator.telemetry import SYSTEM_PROPERTIES, Bag

log = logging.getLogger(__name__)

BODY_PATH = re.compile(r"\.(\w+)|\[(\d+)\]")
DEFAULT_TTL_S = 7200
NAME = re.compile(r"\d{10}-\d{16}")


class Message(NamedTuple):
    """identity: who sent it, device and module: the same, as names."""

    identity: str
    device: str
    module: str
    bag: Bag
    body: bytes


class Router:
    """Sends messages on; what cannot go now waits in folder.

    upstream: takes a message to the cloud, and raises OSError where it cannot be stored there. listening: returns once
    a module takes messages. deliver: gives one to a module's input and returns once it is acknowledged, or false where
    it was not. tell: something has changed. now: the clock that messages expire by. counters: no_route,
    expired_messages, damaged_messages, delivered (to inputs).
    """

    def __init__(
        self,
        folder: Path,
        counters: Counter[str],
        upstream: Callable[[Message], None],
        listening: Callable[[str], Awaitable[None]],
        deliver: Callable[[str, str, Message], Awaitable[bool]],
        tell: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._counters = counters
        self._upstream = upstream
        self._listening = listening
        self._deliver = deliver
        self._tell = tell
        self._now = now
        self._routes: list[Route] | None = None
        self._ttl_s = DEFAULT_TTL_S
        self._queues = {path.name: Queue(path, now) for path in folder.iterdir()} if folder.is_dir() else {}
        self._pumping: set[str] = set()
        self._tasks = Tasks()
        self.is_cut = False

    def configure(self, desired: Mapping[str, Any]) -> None:
        """From the desired properties of $edgeHub. Without routes in them there is no edgeHub: all goes upstream."""
        routes = desired.get("routes")
        self._routes = None
        if isinstance(routes, dict):
            self._routes = []
            for name, definition in routes.items():
                try:
                    self._routes.append(Route(name, definition))
                except ValueError as error:
                    log.error("a route is left out: %s: %s", name, error)
        storage = desired.get("storeAndForwardConfiguration")
        ttl_s = storage.get("timeToLiveSecs") if isinstance(storage, dict) else None
        self._ttl_s = ttl_s if isinstance(ttl_s, int) else DEFAULT_TTL_S

    def start(self) -> None:
        """Go on with what waits from the last time. Raises OSError: it cannot be stored in the cloud."""
        for name in self._queues:
            self._pump(name)
        self.cut(self.is_cut)

    async def stop(self) -> None:
        await self._tasks.end()

    def cut(self, is_cut: bool) -> None:
        """Raises OSError: what has waited cannot be stored in the cloud."""
        self.is_cut = is_cut
        if not is_cut and UPSTREAM in self._queues:
            self._drain(self._queues[UPSTREAM])

    def waiting(self) -> dict[str, int]:
        """Messages by endpoint."""
        return {name.replace("%2F", "/"): len(queue) for name, queue in self._queues.items() if len(queue)}

    def route(self, message: Message, source: str | None = None) -> None:
        """Durable where it has to go when it returns. Raises OSError."""
        targets = self._targets(message, source or source_of(message.module, message.bag.get("$.on")))
        if not targets:
            self._counters["no_route"] += 1
        for endpoint, (priority, ttl_s) in targets.items():
            name = quote(endpoint, safe="$")
            queue = self._queues.get(name)
            if endpoint == UPSTREAM and not self.is_cut and not queue:
                self._upstream(message)
                continue
            if queue is None:
                queue = self._queues[name] = Queue(self._folder / name, self._now)
            queue.put(message, priority, ttl_s)
            self._pump(name)
            if endpoint == UPSTREAM:
                self.cut(self.is_cut)

    def _targets(self, message: Message, source: str) -> dict[str, tuple[int, int]]:
        """Priority and time to live by endpoint."""
        if self._routes is None:
            return {UPSTREAM: (0, self._ttl_s)} if source.startswith("/messages") else {}
        targets: dict[str, tuple[int, int]] = {}
        lookup = _Names(message)
        for route in self._routes:
            if route.takes(source, lookup):
                known = targets.get(route.endpoint)
                if known is None or route.priority < known[0]:
                    targets[route.endpoint] = route.priority, route.ttl_s or self._ttl_s
        return targets

    def _pump(self, name: str) -> None:
        if name != UPSTREAM and name not in self._pumping:
            self._pumping.add(name)
            self._tasks.start(self._send_on(name), f"queue of {name}")

    async def _send_on(self, name: str) -> None:
        queue = self._queues[name]
        module, _, input_name = name.partition("%2F")
        try:
            while len(queue):
                await self._listening(module)  # which may take long: what is first then goes first
                first = queue.first(self._counters)
                if first and await self._deliver(module, input_name, first[1]):
                    queue.drop(first[0])
                    self._counters["delivered"] += 1
                    self._tell()
        finally:
            self._pumping.discard(name)

    def _drain(self, queue: "Queue") -> None:
        while first := queue.first(self._counters):
            self._upstream(first[1])
            queue.drop(first[0])


class _Waiting(msgspec.Struct):
    """A message in a file, and the second since 1970 until which it waits."""

    message: Message
    expires: float | None


class Queue:
    """Messages in files `<priority>-<sequence>`; now: the clock that they expire by."""

    def __init__(self, folder: Path, now: Callable[[], float]) -> None:
        self._folder = folder
        self._now = now
        folder.mkdir(parents=True, exist_ok=True)
        self._names = sorted(path.name for path in folder.iterdir() if NAME.fullmatch(path.name))
        self._sequence = 1 + max((int(name.partition("-")[2]) for name in self._names), default=0)

    def __len__(self) -> int:
        return len(self._names)

    def put(self, message: Message, priority: int, ttl_s: int) -> None:
        """Durable when it returns; ttl_s below 0: for ever. Raises OSError."""
        name = f"{priority:010}-{self._sequence:016}"
        expires = self._now() + ttl_s if ttl_s >= 0 else None
        draft = self._folder / f"{name}.draft"
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(_Waiting(message, expires)))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._folder / name)
        self._sequence += 1
        bisect.insort(self._names, name)

    def first(self, counters: Counter[str]) -> tuple[str, Message] | None:
        """The next message that has not expired, with the name to drop it by."""
        while self._names:
            name = self._names[0]
            path = self._folder / name
            try:
                waiting = msgspec.json.decode(path.read_bytes(), type=_Waiting)
            except ValueError as error:
                log.error("%s is no message and is set aside: %s", path, error)
                counters["damaged_messages"] += 1
                path.rename(path.with_name(f"{name}.damaged"))
                self._names.remove(name)
                continue
            if waiting.expires is None or waiting.expires > self._now():
                return name, waiting.message
            counters["expired_messages"] += 1
            self.drop(name)
        return None

    def drop(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)
        self._names.remove(name)


class _Names:
    """What a condition's names mean for one message: its properties, its system properties, its body."""

    def __init__(self, message: Message) -> None:
        self._message = message
        self._body: Any = None

    def __call__(self, name: str) -> Any:
        bag = self._message.bag
        if name in bag and not name.startswith("$."):
            return bag[name]
        bare = name.strip("{}")
        if bare.lower().startswith("$body"):
            return self._in_body(bare[len("$body") :])
        return self._system().get(bare[1:].lower(), UNDEFINED) if bare.startswith("$") else UNDEFINED

    def _system(self) -> dict[str, Any]:
        message = self._message
        system = {
            SYSTEM_PROPERTIES[name].lower(): value for name, value in message.bag.items() if name in SYSTEM_PROPERTIES
        }
        return {**system, "connectiondeviceid": message.device, "connectionmoduleid": message.module}

    def _in_body(self, path: str) -> Any:
        if self._body is None:
            self._body = self._parse()
        value = self._body
        for member, index in BODY_PATH.findall(path):
            if member and isinstance(value, dict) and member in value:
                value = value[member]
            elif index and isinstance(value, list) and int(index) < len(value):
                value = value[int(index)]
            else:
                return UNDEFINED
        if isinstance(value, dict | list):
            return json.dumps(value)
        try:
            return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        except OverflowError:
            return UNDEFINED

    def _parse(self) -> Any:
        """A body is looked into only where the message says that it is JSON in UTF-8."""
        bag = self._message.bag
        kind, encoding = (str(bag.get(name)).lower() for name in ("$.ct", "$.ce"))
        if kind != "application/json" or encoding != "utf-8":
            return UNDEFINED
        try:
            return json.loads(self._message.body)
        except (ValueError, RecursionError):
            return UNDEFINED


async def forever(condition: Callable[[], bool], changed: Callable[[float], Awaitable[None]]) -> None:
    """Wait until a condition holds."""
    while not condition():
        try:
            await changed(60)
        except TimeoutError:
            continue


def input_topic(root: str, input_name: str, message: Message) -> str:
    """`…/inputs/{input}/{bag}`: the sender's properties, and who it was."""
    bag: Bag = {name: value for name, value in message.bag.items() if name != "$.on"}
    bag |= {"$.cdid": message.device, "$.cmid": message.module}
    pairs = sorted(bag.items(), key=lambda pair: (not pair[0].startswith("$."), pair[0]))
    encoded = "&".join(_pair(name, value) for name, value in pairs)
    return f"{root}/inputs/{input_name}/{encoded}"


def _pair(name: str, value: str | None) -> str:
    return quote(name, safe="$.") + ("" if value is None else f"={quote(value, safe='')}")
