from typing import NamedTuple

from cy_core.assemble import Assembler
from cy_core.frames import Frames
from cy_core.plan import Plan

class BusTraffic(NamedTuple):
    frames: int
    last_us: int | None
    unknown: int
    short: int
    segments: int
    remote: int
    error: int

class Traffic:
    plan: Plan
    count: int
    clock_us: int
    unknown: int
    def __init__(self, plan: Plan) -> None: ...
    def note(self, frames: Frames, assembler: Assembler | None = None) -> None: ...
    def message(self, number: int) -> tuple[int, int | None]: ...
    def bus(self, number: int) -> BusTraffic: ...
