"""`bordnetz plan`: the example campaigns, checked and planned on the simulated vehicle's drive; and the command."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge.cli import main
from edge.database import load_databases
from edge.logs import open_log
from edge.manifest import DecoderManifest, Signal
from edge.plan import CampaignPlan, Plan, SignalPlan, Usage, backtest
from edge.plan_html import html
from edge.plan_text import text
from edge.plan_trace import CampaignTrace, Point, Trace, Traces
from simulator.check import check_file, read_campaigns
from simulator.vehicle import databases
from simulator.vehicle.drive import write_log

EXAMPLES = sorted((Path(__file__).parents[1] / "examples" / "campaigns").glob("*.json"))
GNSS = Path(__file__).parents[1] / "examples" / "databases" / "gnss.dbc"
SECONDS = 40


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, DecoderManifest]:
    folder = tmp_path_factory.mktemp("plan")
    buses = databases()
    manifest = load_databases({**buses, "can2": [*buses["can2"], GNSS]})
    manifest.save(folder / "van.manifest")
    write_log(folder / "drive.log", SECONDS, 1)
    _add_positions(folder / "drive.log")
    return folder / "drive.log", folder / "van.manifest", manifest


def _add_positions(log: Path) -> None:
    """A receiver on can2, once a second, that drives north-east: inside the fence from 12 to 24 s."""
    lines = log.read_text().splitlines(keepends=True)
    start = float(lines[0].split(")")[0][1:])
    for second in range(SECONDS):
        raws = [round((degrees + 210) * 1e7) for degrees in (48.76 + 0.0025 * (second - 11.5), 11.44)]
        payload = b"".join(raw.to_bytes(4, "little") for raw in raws).hex().upper()
        lines.append(f"({start + second + 0.5:.6f}) can2 18FEF34A#{payload}\n")
    log.write_text("".join(sorted(lines)))


@pytest.fixture(scope="module")
def plans(files: tuple[Path, Path, DecoderManifest]) -> dict[str, Plan]:
    log, _, manifest = files
    return {path.stem: backtest(read_campaigns(path, manifest), manifest, [log], Usage()) for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_without_findings(path: Path, files: tuple[Path, Path, DecoderManifest]) -> None:
    assert check_file(path, files[1]) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_keeps_its_bounds_and_its_report_can_be_read(path: Path, plans: dict[str, Plan]) -> None:
    plan = plans[path.stem]
    assert plan.broken_bounds == []
    assert plan.seconds == pytest.approx(SECONDS, abs=1)
    assert path.stem in text(plan)


def seconds_of(plan: Plan, files: tuple[Path, Path, DecoderManifest]) -> list[float]:
    from datetime import datetime

    from cy_core.frames import Frames

    frames = Frames()
    open_log(files[0], files[2].buses).read(frames, 1)
    start = (frames.first_time_us or 0) / 1e6
    return [datetime.fromisoformat(event).timestamp() - start for event in plan.campaigns[0].events]


def test_the_hard_braking_of_the_drive_is_found_once(
    plans: dict[str, Plan], files: tuple[Path, Path, DecoderManifest]
) -> None:
    [at] = seconds_of(plans["hard_brake"], files)
    assert 14 < at < 18.5
    [campaign] = plans["hard_brake"].campaigns
    pressure = next(signal for signal in campaign.signals if signal.signal == "BRAKE.PRESSURE")
    assert pressure.samples == pytest.approx(1500, abs=5)  # 10 s before and 5 s behind, every 10 ms


def test_the_fault_of_the_drive_is_found_and_so_is_the_low_supply(
    plans: dict[str, Plan], files: tuple[Path, Path, DecoderManifest]
) -> None:
    assert any(18 < at < 29 for at in seconds_of(plans["fault_context"], files))
    assert any(18 < at < 32 for at in seconds_of(plans["supply_watch"], files))


def test_the_fence_is_entered_once_and_collected_while_inside(
    plans: dict[str, Plan], files: tuple[Path, Path, DecoderManifest]
) -> None:
    [at] = seconds_of(plans["geofenced"], files)
    assert at == pytest.approx(12.5, abs=0.1)
    [campaign] = plans["geofenced"].campaigns
    assert campaign.conditions_true == 12
    assert not any("POSITION" in signal.signal for signal in campaign.signals)
    found = {signal.signal: signal for signal in campaign.signals}
    assert found["GEARBOX.GEAR"].filter == "histogram"
    assert found["PACK.CURRENT"].samples == pytest.approx(3 * 14, abs=4)  # 1 s before, 11 inside, 2 behind


def test_a_histogram_is_a_fraction_of_what_it_sums_up(plans: dict[str, Plan]) -> None:
    [campaign] = plans["battery_histogram"].campaigns
    found = {signal.signal: signal for signal in campaign.signals}
    assert found["CELL_VOLTAGES_1.CELL_01"].samples == 11  # one period, nine edges: ten classes and the rest
    assert campaign.samples < campaign.samples_seen / 50
    assert sum(signal.samples for signal in campaign.signals) == campaign.samples


def test_raw_frames_around_the_fault_are_counted(plans: dict[str, Plan]) -> None:
    [campaign] = plans["raw_capture"].campaigns
    assert len(campaign.events) == 1
    assert campaign.frames > 10_000
    assert f"{campaign.frames:,} raw frames" in text(plans["raw_capture"])


def test_buses_that_are_never_silent_make_no_event(plans: dict[str, Plan]) -> None:
    assert plans["bus_silence"].campaigns[0].events == []
    assert plans["bus_silence"].bytes == 0


def test_reductions_are_worth_it(plans: dict[str, Plan]) -> None:
    [drive], [battery] = plans["drive_profile"].campaigns, plans["battery_health"].campaigns
    assert drive.samples < drive.samples_seen / 5
    assert battery.samples < battery.samples_seen / 10
    errors = [s.max_error for s in drive.signals if s.filter == "curvelog" and s.max_error is not None]
    assert max(errors) > 0


def test_the_projection_is_arithmetic(files: tuple[Path, Path, DecoderManifest]) -> None:
    log, _, manifest = files
    selections = read_campaigns(EXAMPLES[2], manifest)
    plan = backtest(selections, manifest, [log, log], Usage(2.0, 1000, 3.0, 5.0))
    assert plan.seconds == pytest.approx(2 * SECONDS, abs=2)
    assert plan.mb_per_month == pytest.approx(plan.bytes / 1e6 * 2 * 3600 * 30 / plan.seconds)
    assert plan.fleet_mb_per_month == pytest.approx(1000 * plan.mb_per_month)
    per_vehicle = 3.0 * plan.mb_per_month + 5.0 * plan.units_per_month / 1e6
    assert plan.cost_per_month == pytest.approx(1000 * per_vehicle)


def test_the_command_prints_text_and_json_and_errors_in_one_line(
    files: tuple[Path, Path, DecoderManifest], tmp_path: Path
) -> None:
    log, manifest, _ = files
    brake = next(path for path in EXAMPLES if path.stem == "hard_brake")
    arguments = ["plan", str(brake), "--manifest", str(manifest), "--log", str(log)]
    said = CliRunner().invoke(main, arguments)
    assert said.exit_code == 0, said.output
    assert "1 events" in said.output
    document = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    assert document["campaigns"][0]["campaign"] == "hard_brake"
    bad = tmp_path / "bad.json"
    bad.write_text('{"campaigns": {"a": {"signals": {"SPEED.SPEED": {"max_eror": 1}}}}}')
    failed = CliRunner().invoke(main, ["plan", str(bad), *arguments[2:]])
    assert failed.exit_code == 2
    assert "did you mean max_error?" in failed.output
    checked = CliRunner().invoke(main, ["check", str(bad), "--manifest", str(manifest)])
    assert (checked.exit_code, "campaign a" in checked.output) == (1, True)


def test_the_schema_of_campaigns_is_published() -> None:
    schema = json.loads(CliRunner().invoke(main, ["check", "--schema"]).output)
    text = json.dumps(schema)
    assert all(f'"{field}"' in text for field in ("when", "before_s", "curvelog", "max_error", "latency_s"))
    assert '"additionalProperties": false' in text


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{}", "holds no campaigns|neither"),
        ('{"campaigns": []}', "holds no campaigns"),
        ('{"campaigns": {"a": 3}}', "campaign a: Expected `object`"),
    ],
)
def test_a_document_without_campaigns_is_refused(
    document: str, said: str, files: tuple[Path, Path, DecoderManifest], tmp_path: Path
) -> None:
    import re

    from edge.errors import InputError

    path = tmp_path / "campaigns.json"
    path.write_text(document)
    with pytest.raises(InputError) as error:
        read_campaigns(path, files[2])
    assert re.search(said, str(error.value))


# The report


def report(files: tuple[Path, Path, DecoderManifest], folder: Path, names: list[str]) -> str:
    document: dict[str, dict[str, object]] = {"campaigns": {}}
    for name in names:
        document["campaigns"] |= json.loads((EXAMPLES[0].parent / f"{name}.json").read_text())["campaigns"]
    (folder / "campaigns.json").write_text(json.dumps(document))
    arguments = ["plan", str(folder / "campaigns.json"), "--manifest", str(files[1]), "--html", str(folder / "r.html")]
    said = CliRunner().invoke(main, [*arguments, "--log", str(files[0]), "--log", str(files[0])])
    assert said.exit_code == 0, said.output
    return (folder / "r.html").read_text()


def test_the_report_is_one_file_that_draws_every_kind_and_runs_and_loads_nothing(
    files: tuple[Path, Path, DecoderManifest], tmp_path: Path
) -> None:
    names = ["battery_histogram", "drive_profile", "hard_brake", "geofenced", "bus_silence"]
    made = report(files, tmp_path, names)
    parser = Elements()
    parser.feed(made)
    assert parser.open == []
    assert {"svg", "path", "rect", "table"} <= parser.seen
    assert not parser.seen & {"script", "img", "link", "iframe", "object", "use", "image"}
    assert not re.search(r"(https?:|url\(|@import|\son\w+=|javascript:)", made)
    assert "prefers-color-scheme: dark" in made
    assert all(f"<h2>{name}</h2>" in made for name in names)
    assert made.count('class="hit"') == 2 + 2  # of braking and of the fence, in both recordings
    assert 'class="band"' in made
    assert "time of CELL_VOLTAGES_" in made
    numbers = [float(number) for path in re.findall(r' d="([^"]*)"', made) for number in re.findall(r"-?[\d.]+", path)]
    assert 0 <= min(numbers) <= max(numbers) <= 760
    assert len(made) < 3_000_000


def test_curves_go_through_what_was_sent(files: tuple[Path, Path, DecoderManifest]) -> None:
    log, _, manifest = files
    selections = read_campaigns(next(path for path in EXAMPLES if path.stem == "hard_brake"), manifest)
    plan = backtest(selections, manifest, [log], Usage())
    traces = Traces(plan, selections, manifest)
    assert backtest(selections, manifest, [log], Usage(), watch=traces) == plan
    trace = traces.campaigns["hard_brake"]
    [[first_s, last_s]] = trace.spans
    assert last_s - first_s == pytest.approx(15, abs=0.1)
    [trigger_s] = trace.triggers
    assert first_s < trigger_s < last_s
    for own in trace.signals.values():
        kept = [point for part in own.kept.parts() for point in part]
        seen = {point.at_s: point.value for part in own.seen.parts() for point in part}
        assert first_s <= kept[0].at_s <= kept[-1].at_s <= last_s
        assert min(seen) < 1
        assert max(seen) > SECONDS - 1
        shared = [(point.value, seen[point.at_s]) for point in kept if point.at_s in seen]
        assert shared
        assert all(abs(a - b) <= (own.plan.bound or 0) * (1 + 1e-9) for a, b in shared)


def test_names_from_outside_cannot_write_html() -> None:
    evil = '<script>alert("x")</script>'
    signal = SignalPlan("can0", evil, evil, 1, 1, 10)
    plan = Plan([evil], 1, 1.0, 1, [CampaignPlan(evil, 1, events=[evil], signals=[signal])], 1, 1, 1, 1, 1, 1, 2.0)
    trace = CampaignTrace(plan.campaigns[0], True)
    own = Trace(signal, Signal(evil, 0, 8, unit=evil), 0.1)
    own.kept.add(Point(0.5, 1.0))
    other = Trace(signal, Signal(evil, 0, 8, unit=evil), 0.1)
    other.dwell = {evil: 1.0}
    trace.signals = {0: own, 1: other}
    made = Traces(Plan([evil], 1, 1.0, 1, [], 1, 1, 1, 1, 1, 1, 2.0), [], DecoderManifest((), ()))
    made.plan.campaigns.append(plan.campaigns[0])
    made.campaigns[evil] = trace
    page = html(made)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


class Elements(HTMLParser):
    """The elements of a document; open: those that were not closed, or not in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.seen.add(tag)
        if tag not in ("meta", "br", "line", "rect", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: object) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
