"""The collector module: frames from the buses, as the campaigns of its twin select them, into the outbox.

Environment: BORDNETZ_SOURCE (edge/source), BORDNETZ_MANIFEST (decoder manifest), BORDNETZ_OUTBOX (directory shared
with the uplink), BORDNETZ_OUTBOX_BYTES (quota, optional, the same for both modules), RuntimeLogLevel, and what IoT
Edge sets. Twin: edge.collector.CollectorSettings. Direct method: getStatus.
"""

import asyncio
import logging
import queue
import threading
from pathlib import Path
from typing import Any

import msgspec

from edge import manifest as manifests
from edge import module
from edge.campaign import Campaign, compile_campaign, compile_campaigns
from edge.cloud.iothub import IoTHub
from edge.collector import Collector, CollectorSettings
from edge.decoder import Decoder
from edge.outbox import Outbox
from edge.source import open_source
from edge.twin import Twin

log = logging.getLogger("collector")

REPORT_SECONDS = 60.0


class Module:
    """The line runs in one thread; the connection and the twin in the event loop."""

    def __init__(self, folder: Path, outbox: Outbox) -> None:
        path = module.from_environment("BORDNETZ_MANIFEST", "the decoder manifest's file")
        self.manifest = manifests.load(path)
        source = open_source(module.from_environment("BORDNETZ_SOURCE", "a source of frames"), self.manifest.buses)
        self.first_stored_s: float | None = None
        self.collector = Collector(source, Decoder(self.manifest), outbox, self._note_first)
        self.twin = Twin(CollectorSettings, folder / "settings-collector.json", self._check, self._change)
        self.hub = IoTHub()
        self.hub.on_twin = self.twin.update
        self.hub.on_method = self._answer
        self._changes: queue.SimpleQueue[CollectorSettings] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._change(self.twin.settings)

    async def run(self, stop: asyncio.Event) -> None:
        """Until stop is set, or one of the parts fails."""
        line = asyncio.create_task(asyncio.to_thread(self._collect), name="line")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        others = [
            asyncio.create_task(self.hub.run(), name="hub"),
            asyncio.create_task(self.twin.run(self.hub), name="twin"),
            asyncio.create_task(module.report_changes(self.twin, self._status, lambda: REPORT_SECONDS), name="report"),
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
        line.result()

    def _collect(self) -> None:
        self.collector.run(self._stopping.is_set, self._take_changes)
        self.collector.source.close()
        if self.collector.finished:
            log.info("source %s has no more frames: %d read", self.collector.source.name, self._frames)

    def _note_first(self) -> None:
        self.first_stored_s = round(module.seconds_since_start(), 3)

    # Settings: checked in the event loop, taken over by the line between two steps

    def _check(self, field: str, entry: str | None, value: Any) -> None:
        if field == "campaigns" and entry is not None and isinstance(value, Campaign):
            compile_campaign(entry, value, self.manifest)

    def _change(self, settings: CollectorSettings) -> None:
        self._changes.put(settings)

    def _take_changes(self) -> None:
        while not self._changes.empty():
            settings = self._changes.get()
            selections, _ = compile_campaigns(settings.campaigns, self.manifest)
            self.collector.select(selections, settings.durable_s, settings.block_frames)
            log.info("collecting %s", ", ".join(selection.stream for selection in selections) or "nothing: no campaign")

    # State

    @property
    def _frames(self) -> int:
        return self.collector.source.position

    async def _status(self) -> dict[str, Any]:
        source = self.collector.source
        state = "finished" if self.collector.finished else "running"
        return {
            "source": {"name": source.name, "state": state, "frames": self._frames, "problem": source.problem},
            "manifest": self.manifest.hash,
            "totals": msgspec.to_builtins(self.collector.totals),
            "first_stored_s": self.first_stored_s,
        }

    async def _answer(self, method: str, payload: Any) -> tuple[int, Any]:
        """Direct methods."""
        if method != "getStatus":
            return 404, {"error": f"there is no method {method}; there is: getStatus"}
        own = {"connected": self.hub.connected, "client": dict(self.hub.counters), "settings": self.twin.state}
        return 200, {**await self._status(), **own}


async def run(stop: asyncio.Event) -> None:
    folder, outbox = module.open_outbox()
    with outbox:
        await Module(folder, outbox).run(stop)


if __name__ == "__main__":
    module.main(run)
