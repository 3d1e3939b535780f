"""Values to payload bytes: each message of the databases compiled, once, to the fields it has.

    database + sensors ──► layouts() ──► Layout, one per message and page of a multiplexed message
    state ──► Layout.encode ──► payload

Little-endian (Intel) fields are gathered in one integer and big-endian (Motorola) fields in another; both become
bytes, and are laid over each other. Rules that the databases state and this file keeps:

    COUNTER     goes up by one with every frame of the message
    CHECKSUM    CRC-8 SAE J1850 (polynomial 0x1D, start 0xFF, result inverted) over the message's ChecksumConstant,
                then all payload bytes but the checksum's own
    unused bits are 0, and 1 in J1939 messages, where that means "not available"
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edge.errors import InputError
from simulator.vehicle.sensors import Sensor
from simulator.vehicle.signals_battery import BATTERY
from simulator.vehicle.signals_truck import TRUCK
from simulator.vehicle.signals_van import VAN
from simulator.vehicle.state import State

try:
    import cantools
except ImportError as error:
    raise InputError("simulated vehicle", "needs cantools", "pip install 'bordnetz[bench]'") from error

SENSORS = VAN | BATTERY | TRUCK
CRC_POLYNOMIAL = 0x1D
FD, BIT_RATE_SWITCH, EXTENDED_ID = 4, 1, 1 << 31


class Field(NamedTuple):
    """Where a signal lies, and how its value becomes a raw one."""

    sensor: Sensor
    big_endian: bool
    shift: int  # of the raw value, in the integer of its byte order
    mask: int
    factor: float
    offset: float
    lowest: int  # raw
    highest: int
    is_float: bool

    def raw(self, state: State, random: Callable[[], float]) -> int:
        """What the sensor measures, as the bits of the field."""
        read, factor, noise, quiet = self.sensor
        value = read(state)
        if factor != 1:
            value *= factor
        if noise and (value or not quiet):
            value += noise * (random() - random())
        if self.is_float:
            return int.from_bytes(struct.pack("<f", value), "little")
        # An integer stays one: a double does not hold 64 bits.
        raw: int = round(value if self.factor == 1 and self.offset == 0 else (value - self.offset) / self.factor)
        return max(self.lowest, min(self.highest, raw)) & self.mask


class Layout:
    """One page of a message: the message itself, where it is not multiplexed."""

    def __init__(self, bus: str, message: Any, selection: dict[str, int]) -> None:
        self.bus, self.name, self.selection = bus, message.name, selection
        self.length: int = message.length
        self.can_id: int = message.frame_id | (EXTENDED_ID if message.is_extended_frame else 0)
        attributes = message.dbc.attributes
        self.flags = FD | BIT_RATE_SWITCH * bool(int(attributes["CANFD_BRS"].value)) if message.is_fd else 0
        self.sender: str = message.senders[0]
        self.cycle_us: int = 1000 * (message.cycle_time or 0)
        self.phase_us: int = 1000 * _attribute(attributes, "GenMsgStartDelayTime")
        self.on_change = "OnChange" in str(message.send_type)
        self._constant = _attribute(attributes, "ChecksumConstant")
        self._checksum_byte = self._counter_shift = -1
        self._fields: list[Field] = []
        self._template = [0, 0]  # of the two integers: selectors and unused bits
        used = [0, 0]
        for signal in _present(message, selection):
            used[signal.byte_order == "big_endian"] |= ((1 << signal.length) - 1) << _shift(signal, self.length)
            self._add(signal)
        if message.protocol == "j1939":
            everything = (1 << 8 * self.length) - 1
            self._template[0] |= everything & ~used[0]  # J1939 has no big-endian fields

    def _add(self, signal: Any) -> None:
        shift, big_endian = _shift(signal, self.length), signal.byte_order == "big_endian"
        if signal.name == "CHECKSUM":
            self._checksum_byte = shift // 8
        elif signal.name == "COUNTER":
            self._counter_shift = shift
        elif signal.is_multiplexer:
            self._template[big_endian] |= self.selection[signal.name] << shift
        else:
            self._fields.append(_field(signal, SENSORS[self.name][signal.name], big_endian, shift))

    def values(self, state: State) -> list[Any]:
        """What the sensors show, without noise: an event message is sent when this changes."""
        return [field.sensor.read(state) for field in self._fields]

    def encode(self, state: State, count: int, random: Callable[[], float]) -> bytes:
        """The payload; count: how many frames of this message were sent before."""
        little, big = self._template
        for field in self._fields:
            if field.big_endian:
                big |= field.raw(state, random) << field.shift
            else:
                little |= field.raw(state, random) << field.shift
        if self._counter_shift >= 0:
            little |= (count & 15) << self._counter_shift
        if big:
            little |= int.from_bytes(big.to_bytes(self.length, "big"), "little")
        if self._checksum_byte >= 0:
            little |= self._checksum(little) << 8 * self._checksum_byte
        return little.to_bytes(self.length, "little")

    def _checksum(self, little: int) -> int:
        crc = _CRC_TABLE[0xFF ^ self._constant]
        payload, own = little.to_bytes(self.length, "little"), self._checksum_byte
        for byte in payload[:own] + payload[own + 1 :]:
            crc = _CRC_TABLE[crc ^ byte]
        return crc ^ 0xFF


def layouts(bus: str, path: Path) -> Iterator[list[Layout]]:
    """Every message of a database, as the pages it is sent in."""
    database: Any = cantools.database.load_file(path, strict=True)
    for message in database.messages:
        yield [Layout(bus, message, selection) for selection in _selections(message.signal_tree)]


def _selections(tree: list[Any]) -> list[dict[str, int]]:
    """Every combination of selector values that the multiplexers of a message have."""
    selections: list[dict[str, int]] = [{}]
    for branch in tree:
        if isinstance(branch, dict):
            ((selector, pages),) = branch.items()
            selections = [
                {**before, selector: value, **below}
                for before in selections
                for value, page in pages.items()
                for below in _selections(page)
            ]
    return selections


def _present(message: Any, selection: dict[str, int]) -> Iterator[Any]:
    """The signals that this selection makes present."""
    for signal in message.signals:
        if signal.multiplexer_ids is None or selection.get(signal.multiplexer_signal) in signal.multiplexer_ids:
            yield signal


def _field(signal: Any, sensor: Sensor, big_endian: bool, shift: int) -> Field:
    factor, offset, size = signal.scale, signal.offset, 1 << signal.length
    lowest, highest = (-size // 2, size // 2 - 1) if signal.is_signed else (0, size - 1)
    lowest = max(lowest, round((signal.minimum - offset) / factor))
    highest = min(highest, round((signal.maximum - offset) / factor))
    return Field(sensor, big_endian, shift, size - 1, factor, offset, lowest, highest, signal.is_float)


def _shift(signal: Any, length: int) -> int:
    """How far left the signal's lowest bit is, in the payload read as an integer in the signal's byte order."""
    if signal.byte_order == "little_endian":
        return int(signal.start)
    highest_bit_from_left = 8 * (signal.start // 8) + 7 - signal.start % 8
    return int(8 * length - highest_bit_from_left - signal.length)


def _attribute(attributes: dict[str, Any], name: str) -> int:
    return int(attributes[name].value) if name in attributes else 0


def _crc_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc << 1 ^ (CRC_POLYNOMIAL | 0x100 if crc & 0x80 else 0)
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()
