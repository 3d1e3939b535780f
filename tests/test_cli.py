"""The `bordnetz` command as a person uses it: results, exit status, one line for what is wrong."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cy_core.frames import Frames
from edge import block, cli
from edge import manifest as manifests
from edge import table as tables
from edge.decoder import Decoder
from edge.log_writer import open_log_writer
from simulator import vehicle
from simulator.demo import ROOT
from tests.test_codec_signals import MANIFEST


def bordnetz(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a drive and its manifest, made by the command itself."""
    made = tmp_path_factory.mktemp("cli")
    assert bordnetz("drive", "-o", made / "drive.log", "--seconds", 3, "--seed", 5).exit_code == 0
    buses = [f"--bus={bus}={','.join(map(str, paths))}" for bus, paths in vehicle.databases().items()]
    result = bordnetz("compile", *buses, "-o", made / "vehicle.manifest")
    assert result.exit_code == 0, result.output
    return made


def test_the_same_seed_drives_the_same_drive(folder: Path, tmp_path: Path) -> None:
    bordnetz("drive", "-o", tmp_path / "drive.log.gz", "--seconds", 3, "--seed", 5)
    assert gzip.decompress((tmp_path / "drive.log.gz").read_bytes()) == (folder / "drive.log").read_bytes()


def test_decode_writes_the_same_samples_to_parquet_and_csv(folder: Path, tmp_path: Path) -> None:
    for name in ("a.parquet", "a.csv"):
        result = bordnetz(
            "decode", folder / "drive.log", "--manifest", folder / "vehicle.manifest", "-o", tmp_path / name
        )
        assert result.exit_code == 0, result.output
    rows = pq.read_table(tmp_path / "a.parquet")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "time_us,bus,message,signal,raw,value,label"
    assert len(lines) == rows.num_rows + 1
    assert [int(line.split(",")[0]) for line in lines[1:100]] == rows["time_us"].to_pylist()[:99]


def test_signals_lists_what_can_be_collected(folder: Path) -> None:
    path = vehicle.databases()["can0"][0]
    text, rows = bordnetz("signals", path), json.loads(bordnetz("signals", "--json", path).stdout)
    assert text.exit_code == 0
    assert {row["name"] for row in rows} == {line.split()[0] for line in text.stdout.splitlines()}
    known = {name for name, _, _ in manifests.load(folder / "vehicle.manifest").names()}
    assert {row["name"] for row in rows} <= known


def test_a_log_with_a_bad_line_is_decoded_all_the_same_and_the_line_is_named(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "drive.log").read_text().splitlines(keepends=True)
    (tmp_path / "bad.log").write_text("".join([*lines[:10], "this is no frame\n", *lines[10:]]))
    good, bad = tmp_path / "good.parquet", tmp_path / "bad.parquet"
    bordnetz("decode", folder / "drive.log", "--manifest", folder / "vehicle.manifest", "-o", good)
    result = bordnetz("decode", tmp_path / "bad.log", "--manifest", folder / "vehicle.manifest", "-o", bad)
    assert result.exit_code == 1
    assert "bad.log: line 11: no frame in 'this is no frame'; left out" in result.output
    assert pq.read_table(bad) == pq.read_table(good)


def test_a_gzip_file_that_is_cut_is_decoded_up_to_the_cut(folder: Path, tmp_path: Path) -> None:
    packed = gzip.compress((folder / "drive.log").read_bytes())
    (tmp_path / "cut.log.gz").write_bytes(packed[: len(packed) // 2])
    out = tmp_path / "cut.parquet"
    result = bordnetz("decode", tmp_path / "cut.log.gz", "--manifest", folder / "vehicle.manifest", "-o", out)
    assert result.exit_code == 1
    assert "is cut or damaged after line" in result.output
    assert pq.read_table(out).num_rows > 1000


def test_frames_without_a_message_are_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("(1.0) can0 7FE#00\n(1.0) nobus 001#00\n")
    result = bordnetz("decode", tmp_path / "a.log", "--manifest", folder / "vehicle.manifest", "-o", tmp_path / "a.csv")
    assert result.exit_code == 0
    assert "0 samples from 2 frames, 2 of no message in the manifest" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("decode", "none.log", "--manifest", "vehicle.manifest", "-o", "a.csv"), "none.log: no such file"),
        (("decode", "drive.log", "--manifest", "none.manifest", "-o", "a.csv"), "none.manifest: cannot be read"),
        (("decode", "drive.log", "--manifest", "drive.log", "-o", "a.csv"), "is not a decoder manifest"),
        (("decode", "drive.log", "--manifest", "flipped.manifest", "-o", "a.csv"), "hash does not match"),
        (("decode", "drive.log", "--manifest", "vehicle.manifest", "-o", "a.xls"), "take .parquet or .csv"),
        (("compile", "--bus", "can0", "-o", "a.manifest"), "is not NAME=FILE"),
        (("compile", "--bus", "can0=none.dbc", "-o", "a.manifest"), "none.dbc: cannot be read"),
        (("compile", "--bus", "can0=broken.dbc", "-o", "a.manifest"), "broken.dbc"),
        (("compile", "--bus", "can0=drive.log", "-o", "a.manifest"), "is no database by its suffix"),
        (("signals", "none.dbc"), "none.dbc: cannot be read"),
        (("check", "drive.log"), "is nothing that can be checked"),
        (("demo", "drive.log"), "go together"),
        (("demo", "none.log", "--manifest", "vehicle.manifest", "-o", "out"), "none.log: no such file"),
        (("demo", "-o", "."), "is not empty, and no demo made it"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_status_2(
    arguments: tuple[str, ...], said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("drive.log", "vehicle.manifest"):
        shutil.copy(folder / name, tmp_path)
    content = bytearray((folder / "vehicle.manifest").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.manifest").write_bytes(content)
    (tmp_path / "broken.dbc").write_bytes(bytes(range(256)))
    monkeypatch.chdir(tmp_path)
    result = bordnetz(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    assert not (tmp_path / "a.csv").exists()
    assert not (tmp_path / "a.manifest").exists()


def test_compile_prints_diagnostics_and_strict_makes_them_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "overlap.dbc"
    path.write_text(
        'VERSION ""\nBU_: X\nBO_ 1 M: 1 X\n SG_ A : 0|4@1+ (1,0) [0|0] "" X\n SG_ B : 2|4@1+ (1,0) [0|0] "" X\n'
    )
    lax = bordnetz("compile", f"--bus=can0={path}", "-o", tmp_path / "lax.manifest")
    assert lax.exit_code == 0
    assert "overlap.dbc" in lax.output
    assert (tmp_path / "lax.manifest").exists()
    strict = bordnetz("compile", f"--bus=can0={path}", "-o", tmp_path / "strict.manifest", "--strict")
    assert strict.exit_code == 1
    assert not (tmp_path / "strict.manifest").exists()


def test_check_finds_an_undefined_module_image_and_exits_with_1(tmp_path: Path) -> None:
    template = json.loads((ROOT / "deployment.template.json").read_text())
    desired = template["modulesContent"]["$edgeAgent"]["properties.desired"]
    desired["modules"]["uplink"]["settings"]["image"] = "${MODULES.nosuch}"
    (tmp_path / "deployment.template.json").write_text(json.dumps(template))
    shutil.copytree(ROOT / "modules", tmp_path / "modules")
    shutil.copy(ROOT / ".env", tmp_path)
    result = bordnetz("check", tmp_path / "deployment.template.json")
    assert result.exit_code == 1
    assert "uplink.settings.image: ${MODULES.nosuch}" in result.output
    assert len(result.output.splitlines()) == 1


def test_check_finds_nothing_in_what_the_project_ships(folder: Path) -> None:
    files = [ROOT / "deployment.template.json", folder / "vehicle.manifest", *vehicle.databases()["can0"]]
    result = bordnetz("check", *files)
    assert (result.exit_code, result.output.count("nothing to complain about")) == (0, 1), result.output


def test_check_expands_a_template_to_a_deployment_that_has_no_findings_either(tmp_path: Path) -> None:
    expanded = tmp_path / "deployment.json"
    assert bordnetz("check", ROOT / "deployment.template.json", "--expand", expanded).exit_code == 0
    assert "${" not in expanded.read_text()
    result = bordnetz("check", expanded)
    assert result.exit_code == 0, result.output


def test_check_expands_a_template_for_the_platform_that_is_asked_for(tmp_path: Path) -> None:
    expanded = tmp_path / "made" / "deployment.json"
    template = ROOT / "deployment.template.json"
    assert bordnetz("check", template, "--expand", expanded, "--platform", "arm64v8").exit_code == 0
    assert "bordnetz-uplink:0.1.0-arm64v8" in expanded.read_text()
    result = bordnetz("check", template, "--platform", "riscv")
    assert result.exit_code == 1
    assert "${MODULES.uplink} is no image for riscv" in result.output


def test_an_expanded_template_that_cannot_be_written_is_one_clear_line() -> None:
    result = bordnetz("check", ROOT / "deployment.template.json", "--expand", "/proc/deployment.json")
    assert result.exit_code == 2
    assert "/proc/deployment.json: cannot be written (" in result.output


def test_check_says_what_is_wrong_with_a_campaign(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "campaigns.json").write_text(
        json.dumps({"campaigns": {"a": {"signals": {"NoSuch.Signal": {}}}, "b": {"signals": {}, "prio": 3}}})
    )
    result = bordnetz("check", tmp_path / "campaigns.json", "--manifest", folder / "vehicle.manifest")
    assert result.exit_code == 1
    assert "campaign a: signals.NoSuch.Signal: matches no signal" in result.output
    assert "campaign b" in result.output
    assert "prio" in result.output


@pytest.mark.process
def test_ctrl_c_in_the_middle_of_the_demo_leaves_no_process_and_no_half_written_table(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "edge", "demo", "-o", str(out), "--seconds", "30"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = next(line for line in process.stderr if line.startswith("starting"))
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        status = process.wait(60)
    assert status == 130, seen + rest
    assert "Traceback" not in rest
    assert not (out / "table").exists()
    assert not [path for path in out.iterdir() if "draft" in path.name]
    assert not processes_of(out)


@pytest.mark.process
def test_a_demo_that_is_killed_takes_its_modules_with_it(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "edge", "demo", "-o", str(out), "--seconds", "30"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("starting"))
        process.kill()
        process.wait(60)
    assert not processes_of(out)


def processes_of(out: Path) -> list[str]:
    """Processes that still run with something of this folder in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(out).encode() in path.read_bytes() and path.parent.name != str(os.getpid()):
                found.append((path.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_a_table_for_signals_is_trained_on_the_command_line(tmp_path: Path) -> None:
    frames = Frames()
    for i in range(1000):
        frames.append(10_000 * i, 0, 1, (i * 1234).to_bytes(8, "little"))
    with open_log_writer(tmp_path / "drive.log") as log:
        log.write(frames, MANIFEST.buses)
    (tmp_path / "campaigns.json").write_text('{"campaigns": {"drive": {"signals": {"*": {}}}}}')
    MANIFEST.save(tmp_path / "car.manifest")
    train = ["train", tmp_path / "drive.log", "-o", tmp_path / "car.table", "--manifest", tmp_path / "car.manifest"]
    assert bordnetz(*train).exit_code != 0
    done = bordnetz(*train, "--campaigns", tmp_path / "campaigns.json")
    assert done.exit_code == 0, done.output
    table = tables.load(tmp_path / "car.table")
    assert table.context_count > 10
    assert not table.streams
    columns = Decoder(MANIFEST).decode_batch(frames.slice(500, 600))
    assert len(block.encode(columns, table=table)) < len(block.encode(columns))
