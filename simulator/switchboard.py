"""Throws the switches of simulator/faults.py on a device: at once, or as a schedule says.

{"repeat_s": 120, "steps": [{"at_s": 10, "faults": {"upstream_cut": true}},
                            {"at_s": 40, "faults": {"upstream_cut": false, "disconnect_every_s": 5}}]}
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from edge.errors import InputError
from simulator.device import EdgeDevice
from simulator.faults import Faults, changed
from simulator.tasks import Tasks


class Step(msgspec.Struct, forbid_unknown_fields=True):
    """Switches to be thrown at_s seconds after the start of the schedule."""

    at_s: Annotated[float, msgspec.Meta(ge=0)]
    faults: dict[str, Any]


class Schedule(msgspec.Struct, forbid_unknown_fields=True):
    """repeat_s: it begins anew so long after its start; without it, once."""

    steps: list[Step]
    repeat_s: Annotated[float, msgspec.Meta(ge=1)] | None = None


def load(path: Path) -> Schedule:
    """Raises InputError."""
    try:
        schedule = msgspec.json.decode(path.read_bytes(), type=Schedule)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "name a schedule of faults") from error
    except msgspec.MsgspecError as error:
        way_out = 'as in {"steps": [{"at_s": 10, "faults": {"upstream_cut": true}}]}'
        raise InputError(path, f"is no schedule of faults: {error}", way_out) from error
    for number, step in enumerate(schedule.steps):
        changed(Faults(), step.faults, f"{path}: steps[{number}].faults")
        if schedule.repeat_s is not None and step.at_s >= schedule.repeat_s:
            place = f"{path}: steps[{number}].at_s"
            raise InputError(place, f"{step.at_s:g} is behind repeat_s", f"below {schedule.repeat_s:g}")
    return schedule


class Switchboard:
    """`throw({"puback_delay_s": 2})`; what is thrown holds until it is thrown back, or the device ends."""

    def __init__(self, device: EdgeDevice) -> None:
        self._device = device
        self._hub = device.hub
        self._tasks = Tasks()
        self._storm: asyncio.Task[None] | None = None

    async def throw(self, changes: Mapping[str, Any]) -> Faults:
        """All switches as they are now. Raises InputError: a name or value is wrong, and nothing was thrown."""
        before, after = self._hub.faults, changed(self._hub.faults, changes, "faults")
        self._hub.faults = after
        self._hub.write({"threw": dict(changes)})
        if after.workload_down != before.workload_down:
            await self._device.serve_workloads(not after.workload_down)
        if after.certificate_expired != before.certificate_expired:
            self._device.show_certificate(expired=after.certificate_expired)
            self._hub.disconnect_all()
        if after.upstream_cut != before.upstream_cut:
            self._hub.cut_upstream(after.upstream_cut)
        if after.time_rate != before.time_rate:
            self._hub.clock.run(after.time_rate)
        if after.disconnect_every_s != before.disconnect_every_s:
            self._restart_storm(after.disconnect_every_s)
        self._hub.tell()
        return after

    async def run(self, schedule: Schedule) -> None:
        """Step by step, for ever where it repeats."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            for step in sorted(schedule.steps, key=lambda step: step.at_s):
                await asyncio.sleep(began + step.at_s - loop.time())
                await self.throw(step.faults)
            if schedule.repeat_s is None:
                return
            began += schedule.repeat_s

    async def stop(self) -> None:
        await self._tasks.end()

    def _restart_storm(self, period_s: float) -> None:
        if self._storm is not None:
            self._storm.cancel()
        self._storm = self._tasks.start(self._disconnect(period_s), "faults: storm") if period_s else None

    async def _disconnect(self, period_s: float) -> None:
        while True:
            await asyncio.sleep(period_s)
            self._hub.note("disconnect_every_s", "")
            self._hub.disconnect_all()
