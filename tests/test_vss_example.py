"""The example's overlays and the van, through the command line."""

import csv
import json
from pathlib import Path

from click.testing import CliRunner

from edge import manifest as manifest_files
from edge.cli import main
from edge.database import load_databases
from edge.manifest import DecoderManifest
from edge.vss_signal import VssSignal
from simulator.vehicle import databases
from tests.test_vss import EXAMPLE, GOLDEN


def van(tmp_path: Path, *more: str) -> Path:
    buses = [text for bus, paths in databases().items() for text in ("--bus", f"{bus}={','.join(map(str, paths))}")]
    out = tmp_path / "van.manifest"
    overlays = f"{EXAMPLE / 'van.dbc2vss.vspec'},{EXAMPLE / 'van.network.vspec'}"
    arguments = ["compile", *buses, "--vss", overlays, "--vss-spec", str(EXAMPLE / "tree.yaml"), "-o", str(out), *more]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return out


def test_the_example_maps_the_van_without_a_diagnostic_to_the_golden_paths(tmp_path: Path) -> None:
    manifest = manifest_files.load(van(tmp_path, "--strict"))
    names = [f"{message.bus}.{name}" for name, message, _ in manifest.names()]
    found = {vss.path: [names[vss.signal], *vss[2:]] for vss in manifest.vss}
    assert json.loads(json.dumps(found)) == json.loads(GOLDEN.read_text())
    assert load_databases(databases()).messages == manifest.messages


def test_a_drive_decodes_to_paths_in_both_kinds_of_file_and_the_example_campaign_is_valid(tmp_path: Path) -> None:
    from pyarrow.parquet import read_table

    log, path = tmp_path / "drive.log", van(tmp_path)
    run = CliRunner().invoke
    assert run(main, ["drive", "-o", str(log), "--seconds", "5"]).exit_code == 0
    for out in ("t.csv", "t.parquet"):
        result = run(main, ["decode", str(log), "--manifest", str(path), "-o", str(tmp_path / out), "--vss"])
        assert result.exit_code == 0, result.output
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = read_table(tmp_path / "t.parquet")
    assert [row["path"] for row in rows] == table["path"].to_pylist()
    assert [float(row["value"]) if row["value"] else None for row in rows] == table["value"].to_pylist()
    assert {row["text"] for row in rows if row["path"].endswith("SelectedMode")} == {"PARK", "DRIVE"}
    assert all(float(row["value"]) > 60 for row in rows if row["path"].endswith("AirTemperature"))  # in Fahrenheit
    result = run(main, ["check", str(EXAMPLE / "campaign.json"), "--manifest", str(path)])
    assert result.exit_code == 0, result.output
    listed = run(main, ["signals", str(path)])
    assert "Vehicle.Cabin.Door.Row1.DriverSide.IsOpen" in listed.output


def test_a_spec_without_an_overlay_is_bad_use() -> None:
    result = CliRunner().invoke(main, ["compile", "--bus", "a=b.dbc", "--vss-spec", "t.json", "-o", "x"])
    assert result.exit_code == 2


def test_a_fleets_table_is_read_by_path_with_an_overlay_that_came_later(tmp_path: Path) -> None:
    from fleet.decode import load_manifests
    from fleet.table import read as read_long
    from fleet.vss import read_vss

    run = CliRunner().invoke
    folder, table, out = tmp_path / "messages", tmp_path / "table", tmp_path / "by_path.csv"
    assert run(main, ["fleet", "generate", "-o", str(folder), "--vehicles", "2", "--hours", "0.01"]).exit_code == 0
    run(
        main, ["fleet", "decode", str(folder), "-o", str(table), "--manifest", str(folder / "manifests"), "--jobs", "1"]
    )
    refused = run(main, ["fleet", "vss", str(table), "-o", str(out)])
    assert "has no VSS signals; compile it with --vss OVERLAY" in refused.output
    long = read_long(table)
    first = long.slice(0, 1).to_pylist()[0]
    key = first["bus"], f"{first['message']}.{first['signal']}"
    named = [
        (m, [(message.bus, name) for name, message, _ in m.names()])
        for m in load_manifests(folder / "manifests").values()
    ]
    plain, place = next((m, keys.index(key)) for m, keys in named if key in keys)
    paths = (VssSignal("Vehicle.Half", place, "float", steps=(("X", 0.0), ("CONST", 2.0), ("DIV", 0.0))),)
    overlay = DecoderManifest(plain.buses, plain.messages, plain.sources, paths)
    overlay.save(tmp_path / "later.manifest")
    result = run(main, ["fleet", "vss", str(table), "-o", str(out), "--manifest", str(tmp_path / "later.manifest")])
    assert result.exit_code == 0, result.output
    with out.open() as file:
        rows = list(csv.DictReader(file))
    of_signal = read_long(table, message=first["message"], signal=first["signal"])
    assert [float(row["value"]) for row in rows] == [value / 2 for value in of_signal["value"].to_pylist()]
    assert [row["vehicle"] for row in rows] == of_signal["vehicle"].to_pylist()
    assert read_vss(table, overlay)["date"].to_pylist() == of_signal["date"].to_pylist()
