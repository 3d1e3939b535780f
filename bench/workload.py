"""The frames that the figures are taken on."""

import gzip
import os
from pathlib import Path

import msgspec

from cy_core.frames import Frames
from edge.database import load_databases
from edge.logs import open_log
from edge.manifest import DecoderManifest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("BORDNETZ_DATA", ROOT.parent / "shared" / "data"))


class Workload(msgspec.Struct):
    name: str
    log: Path  # candump text
    databases: dict[str, list[Path]]
    manifest: DecoderManifest
    manifest_path: Path
    frames: Frames  # all of the log
    known: Frames  # those that the manifest describes

    def seconds(self) -> list[Frames]:
        """The known frames in batches of one second each."""
        batches, start, times = [], 0, [frame[0] for frame in self.known]
        for place, time_us in enumerate(times):
            if time_us - times[start] >= 1_000_000:
                batches.append(self.known.slice(start, place))
                start = place
        return [*batches, self.known.slice(start, len(times))]


def load(folder: Path) -> Workload:
    log = folder / "bench.log"
    rav4 = DATA / "toyota_rav4_2017"
    if rav4.is_dir():
        name = "RAV4 (comma2k19), 60 s"
        log.write_bytes(gzip.decompress((rav4 / "rav4.log.gz").read_bytes()))
        databases = {"can0": [rav4 / "toyota_new_mc_pt_generated.dbc"], "can1": [rav4 / "toyota_adas.dbc"]}
    else:
        from simulator import vehicle
        from simulator.vehicle.drive import write_log

        name = "simulated vehicle, 60 s"
        databases = vehicle.databases()
        write_log(log, 60, 1)
    manifest = load_databases(databases)
    manifest.save(folder / "bench.manifest")
    frames = Frames()
    open_log(log, manifest.buses).read(frames, 1 << 30)
    return Workload(name, log, databases, manifest, folder / "bench.manifest", frames, _known(frames, manifest))


def _known(frames: Frames, manifest: DecoderManifest) -> Frames:
    from cy_core.plan import Plan

    plan, known = Plan(manifest), Frames()
    for time_us, bus, can_id, flags, data in frames:
        if plan.find_message(bus, can_id) is not None:
            known.append(time_us, bus, can_id, data, flags=flags)
    return known
