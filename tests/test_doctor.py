"""Why is there no data? The sentences, from what really happened; and the collector's direct methods on a device."""

import asyncio
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cy_core.frames import Frames
from edge.campaign import Campaign, SignalRule, compile_campaign
from edge.cli import main
from edge.decoder import Decoder
from edge.doctor import bus_lines, describe, examine, explain, write_status
from edge.errors import InputError
from edge.line import Line
from edge.logs import open_log
from edge.manifest import DecoderManifest, Message, Signal
from edge.message import Clock, Coverage, Quality
from edge.names import Names
from edge.stream import Batch
from edge.train import train
from tests.strategies import batch
from tests.test_collector import MANIFEST, HandSource
from tests.test_transport import MANIFEST as TRANSPORT
from tests.test_transport import as_isotp
from tests.test_transport import frame as frame_of

NOON_US = 1_800_000_000_000_000 - 1_800_000_000_000_000 % 86_400_000_000 + 43_200_000_000


class RecordedSource(HandSource):
    clock = Clock(quality=Quality.RECORDED)


def frame(at_s: float, bus: int = 0, can_id: int = 1, speed: int = 5) -> tuple[int, int, int, int, bytes]:
    return NOON_US + round(at_s * 1e6), bus, can_id, 0, speed.to_bytes(2, "little") + bytes(6)


def said(frames: list[Any], refused: dict[str, str] | None = None, **campaigns: Campaign) -> list[str]:
    line, source = Line(Decoder(MANIFEST)), RecordedSource()
    line.select([compile_campaign(name, campaign, MANIFEST) for name, campaign in campaigns.items()], 0)
    line.take(Batch(batch(frames) if frames else Frames(), Coverage("s", 0, len(frames)), source.clock))
    source.position = len(frames)
    return explain(json.loads(json.dumps(describe(line, source, Names(MANIFEST), refused or {}))))


SPEED, CELLS = {"Motion.*": SignalRule()}, {"Cells.*": SignalRule()}


def test_all_is_well_needs_no_words() -> None:
    assert said([frame(0), frame(1, 1, 2)], drive=Campaign(SPEED)) == []


def test_a_bus_that_fell_silent_is_named_with_the_time() -> None:
    lines = said([frame(0), frame(191, 1, 2)], drive=Campaign(SPEED))
    assert lines == ["bus can0: the bus is silent since 12:00:00"]


def test_a_bus_whose_frames_wait_for_a_block_is_not_called_silent() -> None:
    line, source = Line(Decoder(MANIFEST)), RecordedSource()
    line.take(Batch(batch([frame(0), frame(5, 1, 2)]), Coverage("s", 0, 2), source.clock))
    source.position = 2
    silent = "bus can0: the bus is silent since 12:00:00"
    assert silent in explain(describe(line, source, Names(MANIFEST), {}))
    assert silent not in explain(describe(line, source, Names(MANIFEST), {}, held_s=4))


def test_an_operand_that_was_never_received_is_the_reason() -> None:
    brake = Campaign(SPEED, when="Cells.Cell0 > 80 and Motion.Speed > 50")
    lines = said([frame(0), frame(1, 1, 99)], brake=brake)
    assert "campaign brake: Cells.Cell0 was never received on can1; the bus carries other frames" in lines
    lines = said([frame(0)], brake=brake)
    assert "campaign brake: Cells.Cell0 was never received on can1; the bus has never carried a frame" in lines


def test_a_condition_that_was_never_true_shows_what_it_saw() -> None:
    lines = said([frame(0), frame(1, speed=40), frame(1.5, 1, 2)], brake=Campaign(SPEED, when="Motion.Speed > 50"))
    assert lines == [
        "campaign brake: its condition was looked at 2 times and never true; Motion.Speed is 40 (0.5 s ago)"
    ]


def test_limits_and_silent_messages_are_said() -> None:
    frames = [frame(at, speed=100 * (at % 2)) for at in range(6)] + [frame(6, 1, 9)]
    when = "rising(Motion.Speed > 50)"
    lines = said(frames, brake=Campaign(SPEED | CELLS, when=when, max_events_per_day=1))
    assert lines == [
        "campaign brake: 1 of its 2 messages were never received: can1.Cells",
        "campaign brake: 2 events were left out because of max_events_per_day",
    ]
    assert "campaign cells: none of its 1 messages was ever received" in said(frames, cells=Campaign(CELLS))


def test_signals_that_never_appeared_in_messages_that_came_are_named() -> None:
    page = Signal("Page", 0, 8)
    pages = tuple(Signal(f"P{n}", 8, 8, selector=0, selected_by=((n, n),)) for n in range(3))
    of = DecoderManifest(("can0",), (Message("can0", 1, "Mux", 2, signals=(page, *pages)),))
    line, source = Line(Decoder(of)), RecordedSource()
    names = {"all": Campaign({"*": SignalRule()}), "some": Campaign({"Mux.P1": SignalRule()})}
    line.select([compile_campaign(name, campaign, of) for name, campaign in names.items()], 0)
    frames = [(NOON_US + at, 0, 1, 0, bytes([at % 2, 7])) for at in range(20)]
    line.take(Batch(batch(frames), Coverage("s", 0, 20), source.clock))
    source.position = 20
    assert explain(describe(line, source, Names(of), {})) == [
        "campaign all: 1 of its signals never appeared in messages that came: can0.Mux.P2"
    ]


def test_refused_campaigns_and_no_campaign_at_all_are_said() -> None:
    lines = said([frame(0), frame(0, 1, 2)], {"campaigns/bad": "it is bad"})
    assert lines == [
        "campaigns/bad is refused, and what was valid before goes on: it is bad",
        "nothing is collected: there is no campaign",
    ]


def test_doctor_reads_what_the_collector_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no collector has run"):
        examine(tmp_path)
    line, source = Line(Decoder(MANIFEST)), RecordedSource()
    write_status(tmp_path, {"state": "running", **describe(line, source, Names(MANIFEST), {})})
    shown = CliRunner().invoke(main, ["doctor", "--outbox", str(tmp_path)])
    assert shown.exit_code == 1
    assert "has not given a single frame yet" in shown.output
    assert "why" in json.loads(CliRunner().invoke(main, ["doctor", "--outbox", str(tmp_path), "--json"]).output)
    (tmp_path / "status-collector.json").write_text("{")
    broken = CliRunner().invoke(main, ["doctor", "--outbox", str(tmp_path)])
    assert (broken.exit_code, "is no status of a collector" in broken.output) == (2, True)


def test_a_vehicle_which_has_no_click_simulator_or_fleet_can_be_examined(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules.update(dict.fromkeys(['click', 'simulator', 'fleet', 'cantools']))"
    code = f"{hidden}; import edge.__main__ as command; command.find_spec = lambda name: None; command.main()"

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", code, "doctor", "--outbox", str(tmp_path), *arguments],
            capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1],
        )  # fmt: skip

    done = run()
    assert (done.returncode, "no collector has run on this outbox" in done.stderr) == (2, True), done.stderr
    line = Line(Decoder(MANIFEST))
    write_status(tmp_path, describe(line, RecordedSource(), Names(MANIFEST), {}))
    done = run()
    assert (done.returncode, "has not given a single frame yet" in done.stdout) == (1, True), done.stderr
    assert "why" in json.loads(run("--json").stdout)


def test_what_the_uplink_says_of_a_campaign_stands_beside_its_counters(tmp_path: Path) -> None:
    line, source = Line(Decoder(MANIFEST)), RecordedSource()
    line.select([compile_campaign("drive", Campaign(SPEED), MANIFEST)], 0)
    line.take(Batch(batch([frame(0), frame(1, 1, 2)]), Coverage("s", 0, 2), source.clock))
    source.position = 2
    write_status(tmp_path, {"state": "running", **describe(line, source, Names(MANIFEST), {})})
    assert examine(tmp_path)[1] == [], "no uplink has run here"
    (tmp_path / "status-uplink.json").write_text(json.dumps({"streams": {"drive": {"sent": 3, "evicted": 1200}}}))
    status, lines = examine(tmp_path)
    assert (status["campaigns"]["drive"]["sent"], status["campaigns"]["drive"]["evicted"]) == (3, 1200)
    [said] = [one for one in lines if "evicted" in one or "unsent" in one]
    assert said.startswith("campaign drive: 1,200 of its blocks left the outbox unsent")


@pytest.mark.process
async def test_the_methods_of_the_collector_answer_and_refuse_bad_payloads_with_the_reason(tmp_path: Path) -> None:
    from edge.database import load_databases
    from simulator.demo import ROOT, VEHICLE_FOLDER
    from simulator.device import EdgeDevice
    from simulator.vehicle import databases
    from simulator.vehicle.drive import write_log
    from tests.test_line import deployed, put, status

    manifest = load_databases(databases())
    write_log(tmp_path / "drive.log", 30, 3)
    frames, log = Frames(), open_log(tmp_path / "drive.log", manifest.buses)
    log.read(frames, 5000)
    table = train([(frames, log.buses)])
    campaigns = {"brake": {"when": "SPEED.SPEED > 600", "signals": {"BRAKE/*": {}}}}
    document = deployed(f"replay:{VEHICLE_FOLDER}/drive.log?speed=1", campaigns=campaigns, durable_s=0.1)
    environment = document["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["collector"]["env"]
    environment["BORDNETZ_DOCUMENTS"] = {"value": VEHICLE_FOLDER}
    async with EdgeDevice(document, tmp_path / "device", modules_root=ROOT) as device, asyncio.timeout(60):
        put(device, manifest, tmp_path / "drive.log")
        table.save(device.host_path(VEHICLE_FOLDER) / "van.table")
        device.start_modules()
        while not (found := await status(device, "collector"))["totals"]["frames"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

        async def call(method: str, payload: Any = None) -> tuple[int, Any]:
            return await device.hub.call("collector", method, payload, timeout_s=20)

        assert found["table"] == ""
        device.hub.patch_desired("collector", {"table": table.sha256, "durable_s": 0.2})
        while (found := await status(device, "collector"))["table"] != table.sha256:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        device.hub.patch_desired("collector", {"table": "0" * 64})
        while "table" not in (refused := (await status(device, "collector"))["settings"]["refused"]):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert "is not in" in refused["table"], "and the last good one goes on"
        assert (await status(device, "collector"))["table"] == table.sha256
        assert found["campaigns"]["brake"]["condition"]["when"] == "SPEED.SPEED > 600"
        assert (await call("getCampaigns"))[1]["campaigns"]["brake"]["when"] == "SPEED.SPEED > 600"
        assert await call("setLogLevel", {"level": "debug"}) == (200, {"level": "debug"})
        code, answer = await call("setLogLevel", {"level": "loud"})
        assert (code, "loud" in answer["error"]) == (400, True)
        code, answer = await call("snapshot", {"before": 3})
        assert (code, "did you mean before_s?" in answer["error"]) == (400, True)
        code, answer = await call("snapshot", {"signals": {"SPEED.SPED": {}}})
        assert (code, "did you mean SPEED.SPEED?" in answer["error"]) == (400, True)
        assert (await call("flush", {"now": True}))[0] == 400
        for method in ("getStatus", "getCampaigns", "snapshot", "flush", "setLogLevel"):
            for payload in ([], 7, "now", True, {"x": {}}, {"campaigns": 3}):
                code, answer = await call(method, payload)
                assert (code, answer["error"].startswith(method)) == (400, True), (method, payload, answer)
        code, answer = await call("getStatus", {"campaigns": ["brakes"]})
        assert (code, "there are: brake" in answer["error"]) == (400, True)
        assert list((await call("getStatus", {"campaigns": ["brake"]}))[1]["campaigns"]) == ["brake"]
        assert (await call("restart"))[0] == 404
        assert (await call("snapshot", {"before_s": 1, "after_s": 0, "signals": {"SPEED.*": {}}}))[0] == 200
        assert (await call("flush"))[0] == 200
        while not device.hub.counters["messages"]:
            await device.hub.changed(60)
        # A document of more campaigns than a twin, or an answer, could hold.
        more = {f"more_{n}": {"signals": {"SPEED.SPEED": {}}, "when": "SPEED.SPEED > 600"} for n in range(400)}
        content = json.dumps({"campaigns": more}).encode()
        (device.host_path(VEHICLE_FOLDER) / "more.json").write_bytes(content)
        reference = {"file": "more.json", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        device.hub.patch_desired("collector", {"document": reference})
        while "more_0" not in (found := await status(device, "collector"))["campaigns"]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert len(found["campaigns"]) + found.get("left_out", {}).get("campaigns", 0) == 401
        assert next(iter((await call("getCampaigns"))[1]["campaigns"])) == "more_0"
        assert "more_399" in (await call("getStatus", {"campaigns": ["more_399"]}))[1]["campaigns"]
        outbox = device.host_path(VEHICLE_FOLDER) / "outbox"
        assert examine(outbox)[0]["source"]["name"].startswith("replay:drive.log")
        last = (await status(device, "collector"))["source"]["frames"]
    assert examine(outbox)[0]["source"]["frames"] >= last, "it leaves a last word when it is stopped"


def test_what_is_wrong_on_a_bus_is_said_and_the_rest_is_counted() -> None:
    odd = [(NOON_US, 0, can_id, 0, b"") for can_id in (0x20000004, 0x20000004, 0x40000001)]
    short = [(NOON_US, 0, 1, 0, b"\x05")] * 101
    unknown = [frame(0.001 * n, 1, 99) for n in range(120)]
    frames = [*odd, *short, *(frame(0.001 * n) for n in range(60)), *unknown, frame(0.2)]
    line, source = Line(Decoder(MANIFEST)), RecordedSource()
    source.dropped = {"can0": 7}
    line.take(Batch(batch(frames), Coverage("s", 0, len(frames)), source.clock))
    source.position = len(frames)
    status = json.loads(json.dumps(describe(line, source, Names(MANIFEST), {})))
    can0, can1 = status["buses"]["can0"], status["buses"]["can1"]
    assert {key: can0[key] for key in ("frames", "unknown", "short", "segments", "remote", "error", "dropped")} == {
        "frames": 162, "unknown": 0, "short": 101, "segments": 0, "remote": 1, "error": 2, "dropped": 7,
    }  # fmt: skip
    assert (can1["frames"], can1["unknown"]) == (120, 120)
    assert explain(status)[:4] == [
        "bus can0: the kernel dropped 7 frames, because the collector did not read them in time",
        "bus can0: 2 error frames: look at its wiring, termination and bit rate",
        "bus can0: 101 of 162 frames are shorter than the manifest says",
        "bus can1: none of its 120 frames is in the manifest: is it compiled from this bus's databases?",
    ]
    assert bus_lines(status) == [
        "bus can0: 162 frames, 101 too short, 1 remote, 2 error, 7 dropped",
        "bus can1: 120 frames, 120 of no message",
    ]


def test_messages_in_segments_are_received_ones_and_their_parts_are_not_unknown() -> None:
    segments = [frame_of(n, *each) for n, each in enumerate(as_isotp(bytes(20), 2, 0x7E8))]
    stray = [frame_of(9, 2, 0x7E8, b"\x21" + bytes(7))]
    line, source = Line(Decoder(TRANSPORT)), RecordedSource()
    line.select([compile_campaign("all", Campaign({"ENGINE.*": SignalRule()}), TRANSPORT)], 0)
    line.take(Batch(batch(segments + stray), Coverage("s", 0, 4), source.clock))
    status = describe(line, source, Names(TRANSPORT), {})
    assert status["buses"]["car"]["transport"] == {"assembled": 1, "failed": 0, "stray": 1}
    assert (status["buses"]["car"]["segments"], status["buses"]["car"]["unknown"]) == (4, 0)
    assert status["campaigns"]["all"]["never_received"] == 0
    assert line.traffic.bus(2).short == 1  # ENGINE.W lies behind its 20 bytes
