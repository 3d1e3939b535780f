"""The collector module: frames from the buses, as the campaigns of its twin select them, into the outbox.

Environment: BORDNETZ_SOURCE (edge/source), BORDNETZ_MANIFEST (decoder manifest), BORDNETZ_TABLES (folder of model
tables; that of the manifest, if not set), BORDNETZ_OUTBOX (directory shared with the uplink), BORDNETZ_OUTBOX_BYTES
(quota, optional, the same for both modules), BORDNETZ_DOCUMENTS (optional: the folder of documents that the twin may
refer to), BORDNETZ_CLOUD and what it needs (edge/cloud/choose.py), RuntimeLogLevel, and what IoT Edge sets. Twin:
edge.collector.CollectorSettings. Direct methods: getStatus, getCampaigns, snapshot, flush, setLogLevel
(docs/campaigns.md). Leaves its status beside the outbox for `bordnetz doctor`.
"""

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edge import doctor, module
from edge import manifest as manifests
from edge import table as tables
from edge.answer import fit
from edge.campaign import SNAPSHOT, Campaign, Selection, SignalRule, compile_campaign, compile_campaigns
from edge.cloud.choose import choose_cloud
from edge.collector import Collector, CollectorSettings
from edge.decoder import Decoder
from edge.document import Documents
from edge.errors import EdgeError, InputError
from edge.names import Names
from edge.outbox import Outbox
from edge.source import open_source
from edge.twin import Twin
from edge.typed import explain

log = logging.getLogger("collector")

REPORT_SECONDS = 60.0
STATUS_SECONDS = 5.0
METHOD_SECONDS = 20.0  # for the line to do what a method asks; IoT Hub waits 30 s
REPORTED_CAMPAIGNS = 50


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """Of methods that take no payload."""


class Which(msgspec.Struct, forbid_unknown_fields=True):
    """campaigns: only these; all without one, as far as an answer takes them."""

    campaigns: list[str] = []


class Snapshot(msgspec.Struct, forbid_unknown_fields=True):
    """Capture now, from before_s before to after_s behind: these signals (all, where neither is given) and frames."""

    signals: dict[str, SignalRule] = {}
    frames: list[str] = []
    before_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 10.0
    after_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 1


class LogLevel(msgspec.Struct, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error", "critical"]


PAYLOADS: dict[str, type[msgspec.Struct]] = {
    "getStatus": Which,
    "getCampaigns": Which,
    "flush": Nothing,
    "snapshot": Snapshot,
    "setLogLevel": LogLevel,
}


class Module:
    """The line runs in one thread; the connection and the twin in the event loop."""

    def __init__(self, folder: Path, outbox: Outbox) -> None:
        path = module.from_environment("BORDNETZ_MANIFEST", "the decoder manifest's file")
        self.manifest = manifests.load(path)
        self._tables = Path(os.environ.get("BORDNETZ_TABLES") or Path(path).parent)
        self._table = tables.Table()
        source = open_source(module.from_environment("BORDNETZ_SOURCE", "a source of frames"), self.manifest.buses)
        self.first_stored_s: float | None = None
        self._folder = folder
        self._names = Names(self.manifest)
        self._selections: list[Selection] = []
        documents = os.environ.get("BORDNETZ_DOCUMENTS")
        self.documents = Documents(folder / "document-collector.json", Path(documents) if documents else None)
        self.twin = Twin(
            CollectorSettings, folder / "settings-collector.json", self._check, self._change, self.documents.expand
        )
        self.documents.on_change = self.twin.refresh
        ring_bytes = self.twin.settings.ring_bytes
        self.collector = Collector(source, Decoder(self.manifest), outbox, self._note_first, ring_bytes)
        self.hub = choose_cloud("collector")
        self.hub.on_twin = self.twin.update
        self.hub.on_method = self._answer
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]] = queue.SimpleQueue()
        self._line_ended = False
        self._stopping = threading.Event()
        self._status_lock = threading.Lock()
        self._change(self.twin.settings)
        self.twin.refresh()

    async def run(self, stop: asyncio.Event) -> None:
        """Until stop is set, or one of the parts fails."""
        line = asyncio.create_task(asyncio.to_thread(self._collect), name="line")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        others = [
            asyncio.create_task(self.hub.run(), name="hub"),
            asyncio.create_task(self.twin.run(self.hub), name="twin"),
            asyncio.create_task(self.documents.run(), name="documents"),
            asyncio.create_task(module.report_changes(self.twin, self._status, lambda: REPORT_SECONDS), name="report"),
            asyncio.create_task(self._leave_status(), name="status"),
        ]
        running = {stopped, line, *others}
        try:
            while not stop.is_set():
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            self._stopping.set()
            await asyncio.gather(line, return_exceptions=True)
            await module.cancel(stopped, *others)
            self._write_status()
        line.result()

    def _collect(self) -> None:
        try:
            self.collector.run(self._stopping.is_set, self._take_calls)
            self.collector.source.close()
        finally:
            self._line_ended = True
            self._take_calls()
        if self.collector.finished:
            log.info("source %s has no more frames: %d read", self.collector.source.name, self._frames)

    def _note_first(self) -> None:
        self.first_stored_s = round(module.seconds_since_start(), 3)

    # What the event loop asks of the line is done by its thread, between two steps

    def _ask(self, work: Callable[[], None]) -> "Future[None]":
        future: Future[None] = Future()
        self._calls.put((work, future))
        return future

    def _take_calls(self) -> None:
        while not self._calls.empty():
            work, future = self._calls.get()
            try:
                work()
                future.set_result(None)
            except Exception as error:
                future.set_exception(error)
                raise

    # Settings

    def _check(self, field: str, entry: str | None, value: Any) -> None:
        if field == "campaigns" and entry is not None and isinstance(value, Campaign):
            compile_campaign(entry, value, self._names)
        if field == "table" and value:
            tables.find(self._tables, value)

    def _change(self, settings: CollectorSettings) -> None:
        selections, refused = compile_campaigns(settings.campaigns, self._names, self._selections)
        self._selections = selections
        for reason in refused.values():  # kept from before, and not valid with this manifest
            log.warning("%s", reason)
        if settings.table != self._table.sha256:
            self._table = self._load_table(settings.table)
        table = self._table
        self._ask(lambda: self._select(settings, selections, table))

    def _load_table(self, sha256: str) -> tables.Table:
        """It makes blocks smaller: without it they are made as well."""
        try:
            return tables.load(tables.find(self._tables, sha256)) if sha256 else tables.Table()
        except InputError as error:
            log.warning("%s; blocks are made without a table", error)
            return tables.Table()

    def _select(self, settings: CollectorSettings, selections: list[Selection], table: tables.Table) -> None:
        self.collector.select(selections, settings.durable_s, settings.block_frames, settings.ring_s)
        self.collector.line.table = table
        if settings.ring_bytes != self.collector.line.ring.limit_bytes:
            log.info("ring_bytes %d counts from the next start on", settings.ring_bytes)
        log.info("collecting %s", ", ".join(selection.stream for selection in selections) or "nothing: no campaign")

    # State

    @property
    def _frames(self) -> int:
        return self.collector.source.position

    async def _status(self) -> dict[str, Any]:
        """What is reported in the twin: small, and not changing all the time."""
        source = self.collector.source
        state = "finished" if self.collector.finished else "running"
        streams = list(self.collector.line.streams.items())[:REPORTED_CAMPAIGNS]
        return {
            "source": {"name": source.name, "state": state, "frames": self._frames, "problem": source.problem},
            "manifest": self.manifest.hash,
            "table": self._table.sha256,
            "totals": msgspec.to_builtins(self.collector.totals),
            "first_stored_s": self.first_stored_s,
            "campaigns": {
                name: {"events": stream.tally.events, "samples": stream.tally.samples, "bytes": stream.tally.bytes}
                for name, stream in streams
            },
        }

    def _describe(self) -> dict[str, Any]:
        refused = self.twin.state["refused"]
        collector = self.collector
        described = doctor.describe(collector.line, collector.source, self._names, refused, collector.held_s)
        doctor.add_fates(described, self._folder)
        described["problem"] = collector.problem
        return described

    async def _leave_status(self) -> None:
        while True:
            await asyncio.to_thread(self._write_status)
            await asyncio.sleep(STATUS_SECONDS)

    def _write_status(self) -> None:
        try:
            state = "finished" if self.collector.finished else "running"
            with self._status_lock:  # a cancelled task's thread goes on
                doctor.write_status(self._folder, {"state": state, **self._describe()})
        except OSError as error:
            log.debug("no status left: %s", error)

    # Direct methods

    async def _answer(self, method: str, payload: Any) -> tuple[int, Any]:
        if method not in PAYLOADS:
            return 404, {"error": f"there is no method {method}; there are: {', '.join(PAYLOADS)}"}
        kind = PAYLOADS[method]
        try:
            asked = msgspec.convert({} if payload is None else payload, kind)
            return await self._do(method, asked)
        except msgspec.ValidationError as error:
            return 400, {"error": f"{method}: {explain(error, kind)}"}
        except EdgeError as error:
            return 400, {"error": f"{method}: {error}"}

    async def _do(self, method: str, asked: Any) -> tuple[int, Any]:
        if method == "getStatus":
            own = {"connected": self.hub.connected, "client": dict(self.hub.counters), "settings": self.twin.state}
            described = self._describe()
            described["campaigns"] = _of(described["campaigns"], asked.campaigns)
            whole = {**described, **await self._status(), **own, "campaigns": described["campaigns"]}
            return 200, fit({**whole, "why": doctor.explain(described)}, "why", "campaigns")
        if method == "getCampaigns":
            campaigns = _of(msgspec.to_builtins(self.twin.settings.campaigns), asked.campaigns)
            return 200, fit({"campaigns": campaigns, "refused": self.twin.state["refused"]}, "refused", "campaigns")
        if method == "setLogLevel":
            logging.getLogger().setLevel(asked.level.upper())
            return 200, {"level": asked.level}
        if self._line_ended:
            return 409, {"error": f"{method}: the source has come to its end, and all of it is stored"}
        if method == "flush":
            work = self.collector.store
        else:
            signals = asked.signals or ({} if asked.frames else {"*": SignalRule()})
            campaign = Campaign(signals, asked.priority, asked.frames, before_s=asked.before_s, after_s=asked.after_s)
            selection = compile_campaign(SNAPSHOT, campaign, self._names, is_snapshot=True)
            work = lambda: self.collector.snapshot(selection)  # noqa: E731
        try:
            async with asyncio.timeout(METHOD_SECONDS):
                await asyncio.wrap_future(self._ask(work))
        except TimeoutError:
            return 503, {"error": f"{method}: the line is busy (the outbox may be full); it will be done"}
        totals = self.collector.totals
        return 200, {"frames": totals.frames, "blocks": totals.blocks, "bytes": totals.bytes}


def _of(campaigns: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Raises InputError: one of the names is none of them."""
    for name in names:
        if name not in campaigns:
            close = ", ".join(list(campaigns)[:8]) or "none"
            raise InputError("campaigns", f"there is no campaign {name[:64]!r} at work", f"there are: {close}")
    return {name: campaigns[name] for name in names} if names else campaigns


async def run(stop: asyncio.Event) -> None:
    folder, outbox = module.open_outbox("collector")
    with outbox:
        await Module(folder, outbox).run(stop)


if __name__ == "__main__":
    module.main(run)
