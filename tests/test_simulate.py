"""`bordnetz simulate` and the second terminal: the command, its exit statuses, and what it says."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.errors import InputError
from simulator import control, simulate
from simulator.demo import ROOT

SECONDS = 60
TEMPLATE = ROOT / "deployment.template.json"


def bordnetz(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT, check=False)


class Running:
    """`bordnetz simulate` in a process of its own."""

    def __init__(self, state: Path, *options: object) -> None:
        self.state = state
        command = [sys.executable, "-m", "edge", "simulate", "--state", str(state), *map(str, options)]
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env
        )
        self.lines: list[str] = []

    def until(self, *words: str) -> str:
        """Read on to a line with all of these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if all(word in line for word in words):
                return line
        raise AssertionError(f"{words} never came in {self.lines}")

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=SECONDS)
        self.lines += rest.splitlines()
        return self.process.returncode


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    run = Running(tmp_path / "state", "--vehicle", "--drive-seconds", 5)
    yield run
    if run.process.poll() is None:
        run.end(signal.SIGTERM)


@pytest.mark.process
def test_a_second_terminal_sees_and_changes_what_runs(running):
    running.until("collector: running and connected")
    done = bordnetz("twin", "set", "uplink", '{"latency_s": 2, "message_units": null}', "--state", running.state)
    assert done.returncode == 0, done.stderr
    running.until("uplink:", "bytes", "$.ct=application/x-protobuf")
    desired = json.loads(done.stdout)["properties"]["desired"]
    assert desired["latency_s"] == 2
    assert "message_units" not in desired
    twin = json.loads(bordnetz("twin", "get", "uplink", "--state", running.state).stdout)
    assert (twin["moduleId"], twin["connectionState"]) == ("uplink", "Connected")
    assert twin["properties"]["desired"] == desired

    called = bordnetz("call", "uplink", "getStatus", "--state", running.state)
    assert called.returncode == 0, called.stderr
    assert json.loads(called.stdout)["sent"]["records"] > 0

    thrown = json.loads(bordnetz("fault", "upstream_cut=true", "--state", running.state).stdout)
    assert thrown["upstream_cut"]
    shown = json.loads(bordnetz("status", "--state", running.state).stdout)
    assert shown["faults"] == thrown
    assert shown["modules"]["uplink"]["connected"]
    done = bordnetz("call", "uplink", "getStatus", "--state", running.state)
    assert (done.returncode, done.stderr) == (1, "bordnetz: 404: the device's upstream is cut\n")
    cleared = json.loads(bordnetz("fault", "--clear", "--state", running.state).stdout)
    assert not cleared["upstream_cut"]
    assert json.loads(bordnetz("status", "--state", running.state).stdout)["waiting"] == {}

    for arguments, problem in [
        (("call", "uplink", "nothing"), "uplink answered nothing with 404"),
        (("call", "nobody", "getStatus"), "404: module nobody of device simulated-vehicle is not registered"),
        (("fault", "upsteam_cut=true"), "400: faults: there is no fault upsteam_cut; did you mean upstream_cut?"),
        (("fault", "refuse=many"), "400: faults: Expected `int`, got `str` - at `$.refuse`; known are silent, "),
        (("twin", "set", "uplink", '{"a.b": 1}'), "400: /'a.b' is no name that a twin can hold"),
    ]:
        done = bordnetz(*arguments, "--state", running.state)
        assert done.returncode == 1
        assert done.stderr.startswith(f"bordnetz: {problem}")
    done = bordnetz("simulate", "--state", running.state)
    assert done.returncode == 2
    assert "another simulator runs there; choose another folder with --state" in done.stderr

    assert running.end() == 0
    assert any(line.startswith(tuple("123456789")) and " messages, " in line for line in running.lines)
    assert not (running.state / control.SOCKET).exists()


@pytest.mark.process
def test_two_simulators_run_side_by_side_and_end_by_themselves(tmp_path):
    runs = [Running(tmp_path / name, "--vehicle", "--drive-seconds", 2, "--seconds", 20) for name in "ab"]
    addresses = {run.until("hub on").split()[2] for run in runs}
    for run in runs:
        run.until("collector: running and connected")
        assert run.end(signal.SIGTERM) == 0
    assert len(addresses) == 2


@pytest.mark.process
def test_a_simulator_whose_reader_has_gone_ends_in_order(tmp_path):
    command = [sys.executable, "-m", "edge", "simulate", "--vehicle", "--drive-seconds", "2", "--state", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        next(line for line in process.stdout if "hub on" in line)
        process.stdout.close()
        assert process.wait(SECONDS) == 0
        assert "Broken pipe" not in process.stderr.read()


@pytest.mark.process
def test_a_second_run_with_the_same_state_says_that_the_replay_goes_on(tmp_path):
    for words in (("hub on",), ("drive-2s-seed1.log.gz goes on where", "another --state begins anew")):
        run = Running(tmp_path / "state", "--vehicle", "--drive-seconds", 2)
        run.until(*words)
        run.end()
    assert sum("goes on" in line for line in run.lines) == 1


@pytest.mark.process
def test_a_source_that_is_absent_is_explained_and_a_module_that_is_down_at_the_end_is_no_success(tmp_path):
    run = Running(tmp_path / "state")
    try:
        line = run.until("no CAN interface")
        assert "collector: this machine has no CAN interface can0, can1, can2: it waits for them; --vehicle" in line
        assert "give one with --manifest" in run.until("no decoder manifest")
        run.until("collector: backoff (it ended with 2), see ", "/logs/collector.log")
    finally:
        assert run.end() == 1
    assert any(line.startswith("collector did not stay up: see ") for line in run.lines)


def test_who_talks_to_no_simulator_is_told_so(tmp_path):
    done = bordnetz("twin", "get", "--state", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == f"bordnetz: {tmp_path}: no simulator runs there; start bordnetz simulate, or name its --state\n"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("call", "uplink", "getStatus", "NaN"), "JSON: is no JSON (NaN is no number)"),
        (("twin", "set", "uplink", '{"a": -Infinity}'), "JSON: is no JSON (-Infinity is no number)"),
        (("twin", "set", "uplink", '{"a": 1e999}'), "JSON: is no JSON (1e999 is no number)"),
    ],
)
def test_what_is_no_json_is_refused_before_it_is_sent(tmp_path, arguments, problem):
    done = bordnetz(*arguments, "--state", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr


async def test_a_deployment_that_is_applied_later_replays_the_recording_too(tmp_path):
    (tmp_path / "a.log").touch()
    settings = simulate.Settings(tmp_path / "state", recording=tmp_path / "a.log")
    simulation = simulate.Simulation(simulate.load([TEMPLATE]), "it", settings, lambda line: None)
    async with simulation._device as device:
        collector = device.modules["collector"]
        assert collector.environment["BORDNETZ_SOURCE"].startswith("replay:")
        await device.deploy(simulate.load([TEMPLATE]))
        assert device.modules["collector"] is collector  # it has not changed
        without = simulate.load([TEMPLATE])
        del without["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["collector"]
        await device.deploy(without)
        assert device.modules.keys() == {"uplink"}
    with pytest.raises(InputError, match="no module has a BORDNETZ_SOURCE to replace"):
        simulate.Simulation(without, "it", settings, lambda line: None)


def test_a_document_that_is_too_long_is_refused_before_it_is_sent(tmp_path):
    with pytest.raises(control.Refused, match=r"400: a body of 2,000,002 bytes; 1,048,576 are allowed"):
        control.ask(tmp_path, "PATCH", "/twins/car", "x" * 2_000_000)


@pytest.mark.process
def test_a_disk_that_is_full_is_one_clear_line(tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "host" / "a.log"))

    monkeypatch.setattr(simulate.shutil, "copyfile", full)
    recording = tmp_path / "a.log"
    recording.touch()
    settings = simulate.Settings(tmp_path / "state", recording=recording)
    with pytest.raises(InputError, match=r"a\.log: cannot be written \(No space left on device\); make room"):
        simulate.run(simulate.load([TEMPLATE]), "it", settings, lambda line: None)


def template(tmp_path: Path, change: Any) -> Path:
    document = json.loads(TEMPLATE.read_text())
    change(document["modulesContent"])
    path = tmp_path / "deployment.json"
    text = (
        json.dumps(document)
        .replace("${MODULES.collector}", "bordnetz-collector:1")
        .replace("${MODULES.uplink}", "bordnetz-uplink:1")
    )
    path.write_text(text)
    return path


def test_what_iot_edge_would_refuse_is_refused(tmp_path):
    def spoil(content: dict[str, Any]) -> None:
        content["$edgeHub"]["properties.desired"]["routes"]["uplink"] = "FROM /nowhere INTO $upstream"

    done = bordnetz("simulate", template(tmp_path, spoil), "--state", tmp_path / "state")
    assert done.returncode == 1
    assert "routes.uplink: /nowhere is no source" in done.stdout
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--log", "x.log"), "--log needs --manifest"),
        (("--log", "x.log", "--manifest", "y.manifest"), "x.log: no such file; give a recording"),
        (("--log", "x.log", "--vehicle"), "exclude each other"),
        (("nowhere.json",), "nowhere.json: cannot be read"),
        (("--address", "ö"), "simulator: the address 'ö' is none; for example 127.1.2.3"),
        (("--address", "../x"), "simulator: the address '../x' is none; for example 127.1.2.3"),
        (("--address", "192.0.2.1", "--vehicle", "--drive-seconds", 1), "192.0.2.1:8883: cannot be listened on"),
    ],
)
def test_bad_use_is_one_line_and_exit_status_2(tmp_path, arguments, problem):
    done = bordnetz("simulate", *arguments, "--state", tmp_path / "state")
    assert done.returncode == 2
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_layered_deployments_are_laid_on_the_base(tmp_path):
    layer = tmp_path / "layer.json"
    layer.write_text(
        json.dumps({"content": {"modulesContent": {"uplink": {"properties.desired.retry": {"latency_s": 3}}}}})
    )
    base = template(tmp_path, lambda content: None)
    content = simulate.load([base, layer])["modulesContent"]
    assert content["uplink"]["properties.desired"]["retry"] == {"latency_s": 3}
    assert content["uplink"]["properties.desired"]["latency_s"] == 10
    with pytest.raises(InputError, match="give the deployment it is laid on first"):
        simulate.load([layer])
    with pytest.raises(InputError, match="is no layered deployment"):
        simulate.load([base, base])


def test_the_example_of_a_layered_deployment_is_in_order():
    example = ROOT / "examples" / "deployment" / "quick-uplink.layered.json"
    assert bordnetz("check", example).returncode == 0
    content = simulate.load([TEMPLATE, example])["modulesContent"]
    assert content["uplink"]["properties.desired"]["latency_s"] == 2
    assert content["$edgeHub"]["properties.desired"]["routes"].keys() == {"uplink", "alarms"}
