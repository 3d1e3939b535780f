"""What sits around the drivetrain: indicators, things that break, and the diagnosis that notices."""

from random import Random

from simulator.vehicle.state import (
    CONVERTER_FAILED,
    FAULT_CONVERTER,
    FAULT_INSULATION,
    FAULT_NONE,
    STALK_HAZARD,
    STALK_LEFT,
    STALK_OFF,
    STALK_RIGHT,
    STEP,
    State,
)

BLINK_TICKS = 34  # lamp on, then as long off
# Trouble codes: P0562 (system voltage low), P0AA6 (insulation of the high-voltage system), with failure types.
FAULT_CODES = {FAULT_CONVERTER: 0x056216, FAULT_INSULATION: 0x0AA61A}
STATUS_FAILING, STATUS_CONFIRMED, STATUS_LAMP = 0x01, 0x08, 0x80


class Body:
    def __init__(self, seed: int) -> None:
        self._random = Random(f"{seed} faults")
        # The first fault is in every drive of 30 s, between seconds 19 and 28.
        self._break_at = 19 + 1.5 * self._random.random()
        self._repair_at = self._break_at + 4.5 + 1.5 * self._random.random()
        self._next_to_break = FAULT_CONVERTER

    def step(self, s: State) -> None:
        self._blink(s)
        self._break(s)
        self._diagnose(s)

    def _blink(self, s: State) -> None:
        s.lamp_tick = 0 if s.stalk == STALK_OFF else s.lamp_tick + 1
        lit = s.lamp_tick > 0 and (s.lamp_tick - 1) // BLINK_TICKS % 2 == 0
        s.left_lamp = int(lit and s.stalk in (STALK_LEFT, STALK_HAZARD))
        s.right_lamp = int(lit and s.stalk in (STALK_RIGHT, STALK_HAZARD))

    def _break(self, s: State) -> None:
        if s.broken == FAULT_NONE and s.seconds >= self._break_at:
            s.broken = self._next_to_break
            self._next_to_break = FAULT_INSULATION if s.broken == FAULT_CONVERTER else FAULT_CONVERTER
        elif s.broken != FAULT_NONE and s.seconds >= self._repair_at:
            s.broken = FAULT_NONE
            self._break_at = s.seconds + 50 + 50 * self._random.random()
            self._repair_at = self._break_at + 4 + 8 * self._random.random()

    def _diagnose(self, s: State) -> None:
        """The diagnosis sees what a sensor sees: a fault is noticed once its effect is there."""
        if s.converter == CONVERTER_FAILED and s.supply_voltage < 12.9:
            found = FAULT_CONVERTER
        elif s.insulation_kohm < 300:
            found = FAULT_INSULATION
        else:
            found = FAULT_NONE
        if found != FAULT_NONE and s.fault == FAULT_NONE:
            self._store(s, found)
        s.fault = found
        if found != FAULT_NONE:
            s.fault_seconds += STEP
        s.fault_status &= ~(STATUS_FAILING | STATUS_LAMP)
        s.fault_status |= STATUS_FAILING | STATUS_LAMP if found != FAULT_NONE else 0

    def _store(self, s: State, found: int) -> None:
        s.faults_seen = min(s.faults_seen + 1, 255)
        s.faults_stored = min(s.faults_seen, len(FAULT_CODES))
        s.fault_code, s.fault_status, s.fault_seconds = FAULT_CODES[found], STATUS_CONFIRMED, 0.0
        s.freeze_speed, s.freeze_rpm = s.speed, s.rpm
        s.freeze_voltage, s.freeze_coolant = s.supply_voltage, s.coolant_degrees
