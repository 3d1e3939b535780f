"""A drive of the simulated vehicle, as frames, as a log, and as the truth behind them.

    frames(60, seed=1)                     (time_us, bus, can_id, flags, data), in order of time
    write_log("drive.log.gz", 60, seed=1)  the same in the form of `candump -l`
    truth(60, seed=1)                      the State every 10 ms, which the frames show

The same seed gives the same frames, on every platform; a longer drive begins with the frames of a shorter one.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from edge.errors import InputError
from edge.log_writer import CANDUMP, whole_file
from simulator.vehicle.physics import Van
from simulator.vehicle.state import State
from simulator.vehicle.traffic import STEP_US, Frame, Traffic

START_US = 1_700_000_000_000_000


def frames(seconds: float, seed: int, start_us: int = START_US) -> Iterator[Frame]:
    """The frames of all buses: (time_us, bus, can_id, flags, data), each later than the one before.

    time_us: microseconds of UTC. can_id: bit 31 set for 29-bit identifiers, as in <linux/can.h>. flags: 0 for classic
    CAN, else 4 (CAN FD), with 1 (bit rate switch). Raises ValueError: seconds are negative.
    """
    traffic = Traffic(seed)
    for state in _states(seconds, seed, start_us):
        for time_us, bus, can_id, flags, data in traffic.step(state, (state.tick + 1) * STEP_US):
            if time_us >= seconds * 1_000_000:
                return
            yield start_us + time_us, bus, can_id, flags, data


def truth(seconds: float, seed: int, start_us: int = START_US) -> Iterator[State]:
    """The state every 10 ms: item n holds from n * 10 ms on. A frame shows the state of when it was made."""
    return (copy.copy(state) for state in _states(seconds, seed, start_us))


def write_log(path: Path | str, seconds: float, seed: int, progress: Callable[[float], None] | None = None) -> int:
    """Write a recording in candump's log form, .log, .log.gz or .log.zst; return the number of frames.

    The file appears whole or not at all. progress is called about every second of the drive with the share done,
    0 to 1. Raises InputError: another form is asked for, or the file cannot be written.
    """
    path = Path(path)
    if not path.name.endswith(CANDUMP):
        raise InputError(path, "a drive is written in candump's form", "give a name that ends in .log or .log.gz")
    with whole_file(path) as out:
        return _write(out, seconds, seed, progress or (lambda share: None))


def _states(seconds: float, seed: int, start_us: int) -> Iterator[State]:
    """One state object, moved on by 10 ms at a time."""
    if not seconds >= 0:
        raise ValueError(f"a drive of {seconds} seconds")
    van = Van(seed, start_us)
    while van.state.tick * STEP_US < seconds * 1_000_000:
        yield van.state
        van.step()


def _write(out: BinaryIO, seconds: float, seed: int, progress: Callable[[float], None]) -> int:
    count, next_us = 0, START_US
    for time_us, bus, can_id, flags, data in frames(seconds, seed):
        out.write(_line(time_us, bus, can_id, flags, data))
        count += 1
        if time_us >= next_us:
            next_us += 1_000_000
            progress((time_us - START_US) / 1e6 / seconds)
    progress(1.0)
    return count


def _line(time_us: int, bus: str, can_id: int, flags: int, data: bytes) -> bytes:
    name = f"{can_id & 0x1FFFFFFF:08X}" if can_id >> 31 else f"{can_id:03X}"
    separator = f"##{flags & 3:X}" if flags else "#"
    seconds, micros = divmod(time_us, 1_000_000)
    return f"({seconds}.{micros:06}) {bus} {name}{separator}{data.hex().upper()}\n".encode()
