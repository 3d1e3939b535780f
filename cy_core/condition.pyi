from collections.abc import Sequence

from cy_core.frames import Frames
from cy_core.plan import Plan
from cy_core.traffic import Traffic

OPS: dict[str, tuple[int, int]]

class Condition:
    plan: Plan
    operands: tuple[int, ...]
    evaluated: int
    true: int
    cooled: int
    def __init__(
        self,
        plan: Plan,
        steps: Sequence[tuple[str, int, int, float]],
        operands: Sequence[int],
        cooldown_us: int = 0,
        no_values: Sequence[Sequence[tuple[int, int, str]]] = (),
    ) -> None: ...
    def run(self, frames: Frames, traffic: Traffic) -> list[int]: ...
    def state(self) -> list[tuple[int, float | None, int | None, int]]: ...
