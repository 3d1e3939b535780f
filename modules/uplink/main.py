"""The uplink module: sends what the collector stored, and reports how far it is.

Environment: BORDNETZ_OUTBOX (directory shared with the collector), BORDNETZ_OUTBOX_BYTES (quota, optional, the
same for both modules), BORDNETZ_METERED (optional: edge/metered.py), BORDNETZ_CLOUD and what it needs
(edge/cloud/choose.py), RuntimeLogLevel, and what IoT Edge sets. Twin: edge.uplink_settings.UplinkSettings. Direct
method: getStatus.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from edge import module
from edge.cloud.choose import choose_cloud
from edge.metered import Metered
from edge.outbox import Outbox, Stats
from edge.twin import Twin
from edge.uplink import Uplink
from edge.uplink_settings import UplinkSettings

MESSAGES_BYTES = 1 << 20  # no message is as large: their buffers are used again
FINISH_SECONDS = 2.0  # for what is in flight when the runtime stops the module; closing takes 2 s more at most


class Module:
    """The parts of one running uplink; all outbox calls run in the one thread of executor."""

    def __init__(self, folder: Path, outbox: Outbox, executor: ThreadPoolExecutor) -> None:
        self.hub = choose_cloud("uplink")
        self._outbox = outbox
        self._folder = folder
        self._executor = executor
        self._twin = Twin(UplinkSettings, folder / "settings-uplink.json", on_change=self._apply)
        self._first_sent_s: float | None = None
        self._metered = Metered.from_environment(lambda: self._uplink.look_again())
        self._uplink = Uplink(
            outbox, self.hub, executor, self.hub.vehicle, metered=self._metered, on_first=self._note_first
        )
        self._apply(self._twin.settings)
        self.hub.on_twin = self._twin.update
        self.hub.on_method = self._answer

    async def run(self, stop: asyncio.Event) -> None:
        """Until stop is set, or one of the parts fails."""
        interval_s = lambda: self._uplink.settings.report_s  # noqa: E731
        stopped = asyncio.create_task(stop.wait(), name="stop")
        uplink = asyncio.create_task(self._uplink.run(), name="uplink")
        others = [
            asyncio.create_task(self.hub.run(), name="hub"),
            asyncio.create_task(self._twin.run(self.hub), name="twin"),
            asyncio.create_task(module.report_changes(self._twin, self._status, interval_s), name="report"),
        ]
        metered = asyncio.create_task(self._metered.run(), name="metered")
        try:
            done, _ = await asyncio.wait([stopped, uplink, *others], return_when=asyncio.FIRST_COMPLETED)
            await module.cancel(uplink)
            await self._uplink.finish(FINISH_SECONDS)
        finally:
            await module.cancel(stopped, metered, *others)
        for task in done - {stopped}:
            task.result()

    def _apply(self, settings: UplinkSettings) -> None:
        self._uplink.settings = settings
        self.hub.retry_min_s, self.hub.retry_max_s = settings.retry_min_s, settings.retry_max_s

    async def _status(self) -> dict[str, Any]:
        stats = await asyncio.get_running_loop().run_in_executor(self._executor, self._look)
        sent = msgspec.to_builtins(self._uplink.sent)
        return {"outbox": msgspec.to_builtins(stats), "sent": sent, "first_sent_s": self._first_sent_s}

    def _look(self) -> Stats:
        """In the outbox's thread; leaves beside it what became of each campaign's records, for the collector."""
        with suppress(OSError):
            self._uplink.fates.save(self._folder, self._outbox.untold())
        return self._outbox.stats()

    def _note_first(self) -> None:
        self._first_sent_s = round(module.seconds_since_start(), 3)

    async def _answer(self, method: str, payload: Any) -> tuple[int, Any]:
        """Direct methods."""
        if method != "getStatus":
            return 404, {"error": f"there is no method {method}; there is: getStatus"}
        own = {
            "inFlight": self._uplink.in_flight,
            "window": self._uplink.window,
            "throttled": self._uplink.is_throttled,
            "problem": self._uplink.problem or self.hub.problem,
            "connected": self.hub.connected,
            "metered": self._uplink.metered,
            "meteredProblem": self._metered.problem,
            "waitingForBudget": self._uplink.waiting_for_budget,
        }
        return 200, {
            **await self._status(),
            **own,
            "client": dict(self.hub.counters),
            "settings": self._twin.state,
        }


async def run(stop: asyncio.Event) -> None:
    folder, outbox = module.open_outbox("uplink")
    with outbox, ThreadPoolExecutor(1, "outbox") as executor:
        await Module(folder, outbox, executor).run(stop)


if __name__ == "__main__":
    module.main(run, MESSAGES_BYTES)
