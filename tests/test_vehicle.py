"""The simulated vehicle: what is on its buses decodes, and agrees with the physics it was made from."""

import gzip
import hashlib
import itertools
import math
from collections import defaultdict
from typing import Any, NamedTuple

import cantools
import pytest

from edge.database import compile_databases
from edge.errors import InputError
from simulator.vehicle import databases
from simulator.vehicle.drive import START_US, frames, truth, write_log
from simulator.vehicle.encode import SENSORS
from simulator.vehicle.energy import CAPACITY_AH
from simulator.vehicle.physics import MASS, RADIUS, RATIOS, ROTATING_MASS, TRACK
from simulator.vehicle.state import FAULT_CONVERTER, FAULT_INSULATION, FAULT_NONE
from simulator.vehicle.traffic import MOST_DELAY_US

SECONDS, SEED = 40, 7
EXTENDED_ID = 1 << 31


class Decoded(NamedTuple):
    time_us: int
    bus: str
    message: Any
    values: dict[str, float]
    flags: int
    data: bytes


def load():
    return {
        bus: [cantools.database.load_file(path, strict=True, prune_choices=False) for path in paths]
        for bus, paths in databases().items()
    }


def messages():
    """(bus, identifier as frames() gives it) to message."""
    return {
        (bus, message.frame_id | (EXTENDED_ID if message.is_extended_frame else 0)): message
        for bus, loaded in load().items()
        for database in loaded
        for message in database.messages
    }


@pytest.fixture(scope="module")
def drive() -> list[Decoded]:
    known = messages()
    decoded = []
    for time_us, bus, can_id, flags, data in frames(SECONDS, SEED):
        message = known[bus, can_id]
        values = message.decode(data, decode_choices=False, allow_truncated=False)
        decoded.append(Decoded(time_us, bus, message, values, flags, data))
    return decoded


@pytest.fixture(scope="module")
def states():
    return list(truth(SECONDS, SEED))


@pytest.fixture(scope="module")
def by_name(drive) -> dict[str, list[Decoded]]:
    found = defaultdict(list)
    for frame in drive:
        found[frame.message.name].append(frame)
    return found


def state_of(states, time_us):
    return states[min(len(states) - 1, (time_us - START_US) // 10_000)]


def alongside(by_name, *names):
    """Values of several messages that show the same 10 ms, as one dict each, keyed Message.Signal."""
    steps = defaultdict(dict)
    for name in names:
        for frame in by_name[name]:
            for signal, value in frame.values.items():
                steps[(frame.time_us - START_US) // 10_000][f"{name}.{signal}"] = value
    complete = max(len(step) for step in steps.values())
    return [step for _, step in sorted(steps.items()) if len(step) == complete]


# The databases


def test_the_databases_load_strictly_and_without_a_diagnostic():
    assert sum(len(database.messages) for loaded in load().values() for database in loaded) == len(messages()) == 50
    manifest, diagnostics = compile_databases(databases())
    assert diagnostics == []
    assert manifest.buses == ("can0", "can1", "can2")


def test_every_message_says_what_it_is_and_how_often_it_comes():
    for message in messages().values():
        assert message.comment, message.name
        assert message.cycle_time or message.send_type == "OnChange", message.name


def test_the_databases_hold_one_of_everything_that_is_hard_to_decode():
    signals = [signal for message in messages().values() for signal in message.signals]
    assert {signal.byte_order for signal in signals} == {"little_endian", "big_endian"}
    assert any(signal.length == 64 for signal in signals)
    assert any(signal.is_float for signal in signals)
    assert any(signal.is_signed and signal.start % 8 and signal.length > 8 for signal in signals)
    assert any(signal.is_multiplexer and signal.multiplexer_ids for signal in signals)
    assert any(signal.multiplexer_ids and len(signal.multiplexer_ids) > 1 for signal in signals)
    assert any(message.is_fd and message.length == 64 for message in messages().values())
    assert all(message.protocol == "j1939" for (bus, _), message in messages().items() if bus == "can2")


# Frames


def test_every_frame_has_the_length_and_the_flags_of_its_message(drive):
    for frame in drive:
        assert len(frame.data) == frame.message.length
        assert frame.flags == (5 if frame.message.is_fd else 0)
    assert {frame.bus for frame in drive if frame.flags} == {"can1"}
    assert {frame.message.name for frame in drive} == {message.name for message in messages().values()}


def test_time_goes_up_from_frame_to_frame_and_a_bus_carries_one_frame_at_a_time(drive):
    assert all(a.time_us < b.time_us for a, b in itertools.pairwise(drive))
    for bus, shortest_us in (("can0", 120), ("can1", 80), ("can2", 280)):
        times = [frame.time_us for frame in drive if frame.bus == bus]
        assert min(b - a for a, b in itertools.pairwise(times)) >= shortest_us - 1
    assert 1500 < len(drive) / SECONDS < 2500


def test_cycles_are_kept_on_average_and_jitter_by_less_than_a_millisecond_on_most_frames(by_name):
    for name, found in by_name.items():
        message = found[0].message
        if message.send_type != "Cyclic":
            continue
        gaps = [(b.time_us - a.time_us) / 1000 for a, b in itertools.pairwise(found)]
        assert sum(gaps) / len(gaps) == pytest.approx(message.cycle_time, rel=1e-3), name
        late = sorted(abs(gap - message.cycle_time) for gap in gaps)
        assert 0 < late[len(late) // 2] < 1, name
        assert late[-1] < MOST_DELAY_US / 1000, name
        assert len(found) == pytest.approx(SECONDS * 1000 / message.cycle_time, abs=1), name


def test_event_messages_come_when_something_changes(by_name):
    for name in ("TURN_INDICATORS", "WIPERS"):
        assert len(by_name[name]) > 1
        assert all(a.data != b.data for a, b in itertools.pairwise(by_name[name])), name
    for name in ("DOORS", "LIGHTS", "IGNITION"):
        found = by_name[name]
        cycle_us = 1000 * found[0].message.cycle_time
        between_cycles = [b for a, b in itertools.pairwise(found) if b.time_us - a.time_us < 0.9 * cycle_us]
        changes = [b for a, b in itertools.pairwise(found) if a.data != b.data]
        assert changes, name
        assert len(between_cycles) >= len(changes) - 1, name


def test_counters_have_no_gap(by_name):
    counted = {name: found for name, found in by_name.items() if "COUNTER" in found[0].values}
    assert len(counted) >= 15
    for name, found in counted.items():
        assert [frame.values["COUNTER"] for frame in found] == [n % 16 for n in range(len(found))], name


def crc8_j1850(data: bytes) -> int:
    """Bit by bit, as the standard draws it."""
    register = 0xFF
    for bit in (byte >> n & 1 for byte in data for n in range(7, -1, -1)):
        register = (register << 1 & 0xFF) ^ (0x1D if register >> 7 ^ bit else 0)
    return register ^ 0xFF


def test_checksums_are_crc8_j1850_over_the_constant_and_the_other_bytes(by_name):
    assert crc8_j1850(b"123456789") == 0x4B
    constants = {}
    for name, found in by_name.items():
        if "CHECKSUM" not in found[0].values:
            continue
        message = found[0].message
        constants[name] = message.dbc.attributes["ChecksumConstant"].value
        at = message.get_signal_by_name("CHECKSUM").start // 8
        for frame in found[:500]:
            others = frame.data[:at] + frame.data[at + 1 :]
            assert frame.data[at] == crc8_j1850(bytes([constants[name]]) + others), name
    assert len(constants) >= 12
    assert len(set(constants.values())) == len(constants), "each message has a constant of its own"


def test_multiplexers_visit_every_page(by_name):
    assert {frame.values["PAGE"] for frame in by_name["DIAG"]} == {0, 1, 2, 3}
    pages = {(frame.values["COMPONENT"], frame.values.get("BATTERY_TOPIC")) for frame in by_name["ECU_DATA"]}
    assert pages == {(0, None), (1, None), (2, 0), (2, 1), (2, 2), (3, None)}
    for name in ("DIAG", "ECU_DATA", "VIN"):
        seen = {signal for frame in by_name[name] for signal in frame.values}
        assert seen == {signal.name for signal in by_name[name][0].message.signals}


def test_the_vin_comes_in_three_parts(by_name):
    parts = {}
    for frame in by_name["VIN"]:
        parts |= {name: value for name, value in frame.values.items() if name != "PART"}
    lengths = {"CHARACTERS_1_TO_7": 7, "CHARACTERS_8_TO_14": 7, "CHARACTERS_15_TO_17": 3}
    vin = b"".join(parts[name].to_bytes(length, "big") for name, length in lengths.items()).decode()
    assert len(vin) == 17
    assert vin.isalnum()
    assert not set(vin) & set("IOQ")


def test_bits_without_a_signal_are_ones_in_j1939_and_zeros_elsewhere(drive):
    for frame in drive[:5000]:
        unused = (1 << 8 * len(frame.data)) - 1
        for signal in map(frame.message.get_signal_by_name, frame.values):
            unused &= ~(((1 << signal.length) - 1) << signal.start)
        found = int.from_bytes(frame.data, "little") & unused
        if all(signal.byte_order == "little_endian" for signal in frame.message.signals):
            assert found == (unused if frame.bus == "can2" else 0), frame


# Physics


def test_every_decoded_value_is_the_physics_within_half_a_step_and_the_stated_noise(drive, states):
    compared = 0
    for frame in drive:
        # The step it was made in: that of its time, or the one before, where it had to wait.
        made_in = {(frame.time_us - START_US - late) // 10_000 for late in (0, MOST_DELAY_US)}
        candidates = [states[n] for n in made_in if 0 <= n < len(states)]
        assert any(agrees(frame, state) for state in candidates), (frame, disagreement(frame, candidates[-1]))
        compared += len(frame.values)
    assert compared > 500_000


def agrees(frame, state):
    return disagreement(frame, state) is None


def disagreement(frame, state):
    sensors = SENSORS[frame.message.name]
    for name, value in frame.values.items():
        if name in sensors:
            signal, sensor = SIGNALS[frame.message.name, name], sensors[name]
            wanted = sensor.value(state)
            noise = 0 if sensor.quiet and wanted == 0 else sensor.noise
            half_step = abs(wanted) * 1e-7 if signal.is_float else signal.scale / 2
            if not abs(value - wanted) <= half_step + noise + 1e-9 * max(1.0, abs(wanted)):
                return name, value, wanted
    return None


SIGNALS = {(message.name, signal.name): signal for message in messages().values() for signal in message.signals}


def test_a_64_bit_time_keeps_its_nanoseconds(by_name, states):
    for frame in by_name["TIME"]:
        assert frame.values["UTC"] == state_of(states, frame.time_us).utc_ns
        assert frame.values["UTC"] % 2 == 1, "no double holds it"
        assert 0 < frame.values["UTC"] - frame.time_us * 1000 + 10_000_000 < 20_000_000


def test_wheel_speeds_average_to_the_speed_and_differ_by_the_yaw(by_name):
    largest = 0.0
    for step in alongside(by_name, "WHEEL_SPEEDS", "SPEED", "MOTION"):
        left = (step["WHEEL_SPEEDS.FRONT_LEFT"] + step["WHEEL_SPEEDS.REAR_LEFT"]) / 2
        right = (step["WHEEL_SPEEDS.FRONT_RIGHT"] + step["WHEEL_SPEEDS.REAR_RIGHT"]) / 2
        assert (left + right) / 2 == pytest.approx(step["SPEED.SPEED"], abs=0.05)
        yaw_kmh = math.radians(step["MOTION.YAW_RATE"]) * TRACK * 3.6
        if step["SPEED.SPEED"]:
            assert right - left == pytest.approx(yaw_kmh, abs=0.08)
        largest = max(largest, abs(right - left))
    assert largest > 0.5, "there is a bend in the drive"


def test_lateral_acceleration_is_speed_times_yaw_rate(by_name):
    for step in alongside(by_name, "SPEED", "MOTION"):
        wanted = step["SPEED.SPEED"] / 3.6 * math.radians(step["MOTION.YAW_RATE"])
        assert step["MOTION.LATERAL_ACCELERATION"] == pytest.approx(wanted, abs=0.10)


def test_longitudinal_acceleration_is_the_slope_of_speed(by_name):
    steps = alongside(by_name, "SPEED", "MOTION")
    for a, b in itertools.pairwise(steps):
        # Between the two, not their mean: a gear shift takes the torque away from one 10 ms to the next.
        low, high = sorted(step["MOTION.LONGITUDINAL_ACCELERATION"] for step in (a, b))
        slope = (b["SPEED.SPEED"] - a["SPEED.SPEED"]) / 3.6 / 0.020
        assert low - 0.5 < slope < high + 0.5
    driven = sum(a["MOTION.LONGITUDINAL_ACCELERATION"] * 0.020 for a in steps)
    assert steps[-1]["SPEED.SPEED"] / 3.6 == pytest.approx(driven, abs=0.5)


def test_force_is_mass_times_acceleration(by_name):
    compared = 0
    for step in alongside(by_name, "DRIVE_TORQUE", "BRAKE", "MOTION", "SPEED"):
        if step["SPEED.SPEED"] < 2:
            continue  # near a standstill the brakes hold whatever is left
        torque = step["DRIVE_TORQUE.WHEEL_TORQUE"] - step["BRAKE.FRICTION_TORQUE"]
        force = torque / RADIUS - step["DRIVE_TORQUE.RESISTANCE"]
        wanted = (MASS + ROTATING_MASS) * step["MOTION.LONGITUDINAL_ACCELERATION"]
        assert force == pytest.approx(wanted, abs=0.035 * (MASS + ROTATING_MASS))
        compared += 1
    assert compared > 1000


def test_engine_speed_gear_and_road_speed_belong_together(by_name):
    gears = set()
    for step in alongside(by_name, "ENGINE", "GEARBOX", "SPEED"):
        gear, turning = step["GEARBOX.GEAR"], step["GEARBOX.OUTPUT_SPEED"]
        assert turning == pytest.approx(step["SPEED.SPEED"] / 3.6 / RADIUS * 3.2 * 60 / (2 * math.pi), abs=2)
        if step["GEARBOX.CLUTCH_CLOSED"]:
            assert not step["GEARBOX.SHIFTING"]
            assert step["GEARBOX.INPUT_SPEED"] == pytest.approx(turning * RATIOS[gear], abs=5)
            assert step["ENGINE.RPM"] == pytest.approx(step["GEARBOX.INPUT_SPEED"], abs=4)
            gears.add(gear)
    assert gears >= {1, 2, 3, 4, 5}
    assert by_name["GEARBOX"][0].values["GEAR"] == 15, "parked at first"


def test_the_engine_is_cranked_at_the_start_and_the_voltage_drops(by_name):
    engine = [frame.values["STATE"] for frame in by_name["ENGINE"]]
    assert [state for state, _ in itertools.groupby(engine)] == [0, 1, 2]
    assert [state for state, _ in itertools.groupby(f.values["STATE"] for f in by_name["IGNITION"])] == [1, 2, 3, 2]
    assert min(frame.values["VOLTAGE"] for frame in by_name["SUPPLY"]) < 10
    assert by_name["SUPPLY"][100].values["VOLTAGE"] > 13.8


def test_the_charge_that_flows_is_the_charge_that_is_missing(by_name):
    pack = by_name["PACK"]
    ampere_hours = sum(frame.values["CURRENT"] for frame in pack) * 0.010 / 3600
    missing = pack[0].values["STATE_OF_CHARGE"] - pack[-1].values["STATE_OF_CHARGE"]
    assert missing == pytest.approx(100 * ampere_hours / CAPACITY_AH, abs=0.005)
    assert missing > 0.1
    for frame in pack:
        volts, amperes = frame.values["VOLTAGE"], frame.values["CURRENT"]
        assert frame.values["POWER"] == pytest.approx(volts * amperes, abs=0.08 * abs(amperes) + 0.06 * volts)


def test_the_cells_add_up_to_the_pack(by_name):
    steps = alongside(by_name, "CELL_VOLTAGES_1", "CELL_VOLTAGES_2", "CELL_VOLTAGES_3", "PACK")
    assert len(steps) > 700
    for step in steps:
        cells = [value for name, value in step.items() if ".CELL_" in name and name.startswith("CELL_VOLTAGES")]
        assert len(cells) == 96
        assert sum(cells) == pytest.approx(step["PACK.VOLTAGE"], abs=0.11)
        assert min(cells) == pytest.approx(step["PACK.CELL_VOLTAGE_LOWEST"], abs=0.0005)
        assert max(cells) == pytest.approx(step["PACK.CELL_VOLTAGE_HIGHEST"], abs=0.0005)


def test_the_truck_bus_says_the_same_as_the_others(by_name):
    for step in alongside(by_name, "EEC1", "ENGINE", "CCVS1", "SPEED"):
        assert step["EEC1.ENGINE_SPEED"] == pytest.approx(step["ENGINE.RPM"], abs=5)
        assert step["CCVS1.WHEEL_BASED_SPEED"] == pytest.approx(step["SPEED.SPEED"], abs=0.05)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 12345, -5])
def test_every_drive_of_30_seconds_has_a_hard_braking_and_a_fault(seed):
    states = list(truth(30, seed))
    hard = [s for s in states if s.brake_pressure > 81 and s.speed * 3.6 > 51]
    failing = [s for s in states if s.fault]
    assert len(hard) > 30
    assert 300 < len(failing) < 900
    assert states[-1].fault == 0, "and it is over in time for what comes after it to be seen"


def test_the_hard_braking_and_the_fault_are_on_the_bus(by_name):
    hard = [
        step
        for step in alongside(by_name, "BRAKE", "SPEED", "MOTION")
        if step["BRAKE.PRESSURE"] > 80 and step["SPEED.SPEED"] > 50
    ]
    assert len(hard) > 10
    assert min(step["MOTION.LONGITUDINAL_ACCELERATION"] for step in hard) < -8
    assert all(step["BRAKE.EMERGENCY"] for step in hard)
    failing = [frame for frame in by_name["DIAG"] if frame.values["FAULT"]]
    assert 3e6 < failing[-1].time_us - failing[0].time_us < 9e6
    during = [f for f in by_name["SUPPLY"] if failing[10].time_us < f.time_us < failing[-1].time_us]
    assert max(frame.values["VOLTAGE"] for frame in during) < 13
    codes = {frame.values["CODE"] for frame in by_name["DIAG"] if frame.values["PAGE"] == 1}
    assert codes == {0, 0x056216}
    assert {frame.values["SPN_LOW"] for frame in by_name["DM1"]} == {0, 168}


def test_a_longer_drive_has_other_faults_too_each_with_its_cause():
    seen = set()
    for s in truth(150, SEED):
        if s.fault == FAULT_CONVERTER:
            assert s.supply_voltage < 12.9
        if s.fault == FAULT_INSULATION:
            assert s.insulation_kohm < 300
        seen.add(s.fault)
    assert seen == {FAULT_NONE, FAULT_CONVERTER, FAULT_INSULATION}


# The seed, and the log


def test_the_same_seed_gives_the_same_frames_and_another_gives_others():
    first = list(frames(3, 1))
    assert list(frames(3, 1)) == first
    assert list(frames(3, 2)) != first
    assert list(frames(1.234, 1)) == [frame for frame in first if frame[0] < START_US + 1_234_000]
    moved = list(frames(3, 1, start_us=0))
    assert [frame[0] + START_US for frame in moved] == [frame[0] for frame in first]
    assert list(frames(0, 1)) == []
    with pytest.raises(ValueError, match="-1"):
        next(frames(-1, 1))


def test_the_frames_are_those_of_every_other_machine():
    digest = hashlib.sha256()
    for time_us, bus, can_id, flags, data in frames(30, 1):
        digest.update(f"{time_us} {bus} {can_id} {flags} ".encode() + data)
    assert digest.hexdigest() == "0082340b08e05e4d489fcb2e072f0d8591dc6a4784d611d9269c616ddb5e2dc3"


def read_candump(text):
    for line in text.splitlines():
        stamp, bus, frame = line.split(" ")
        seconds, micros = stamp.strip("()").split(".")
        assert len(micros) == 6
        can_id, _, data = frame.partition("#")
        flags = 4 | int(data[1], 16) if data.startswith("#") else 0
        number = int(can_id, 16) | (EXTENDED_ID if len(can_id) == 8 else 0)
        yield int(seconds) * 1_000_000 + int(micros), bus, number, flags, bytes.fromhex(data[2 if flags else 0 :])


def test_a_log_reads_back_as_the_frames_it_was_written_from(tmp_path):
    shares = []
    count = write_log(tmp_path / "drive.log", 4, 3, shares.append)
    text = (tmp_path / "drive.log").read_text()
    written = list(read_candump(text))
    assert written == list(frames(4, 3))
    assert len(written) == count
    assert shares == sorted(shares)
    assert len(shares) >= 4
    assert shares[-1] == 1.0
    assert write_log(tmp_path / "drive.log.gz", 4, 3) == count
    assert gzip.decompress((tmp_path / "drive.log.gz").read_bytes()).decode() == text
    first = (tmp_path / "drive.log.gz").read_bytes()
    write_log(tmp_path / "again.log.gz", 4, 3)
    assert (tmp_path / "again.log.gz").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.log.gz", "drive.log", "drive.log.gz"]


def test_a_log_appears_whole_or_not_at_all(tmp_path):
    class Stop(Exception):
        pass

    def stop(share):
        if share > 0.3:
            raise Stop

    for name in ("drive.log", "drive.log.gz", "drive.log.zst"):
        with pytest.raises(Stop):
            write_log(tmp_path / name, 4, 3, stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "problem"), [("none/drive.log", "cannot be written"), ("drive.asc", "candump")])
def test_a_log_that_cannot_be_written_is_one_clear_line(tmp_path, name, problem):
    with pytest.raises(InputError, match=problem) as caught:
        write_log(tmp_path / name, 1, 1)
    assert "\n" not in str(caught.value)
