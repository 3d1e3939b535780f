from collections.abc import Sequence

from cy_core.columns import Columns
from cy_core.plan import Plan

KINDS: dict[str, int]
KEEP: dict[str, int]

class Reducer:
    plan: Plan
    def __init__(
        self, plan: Plan, rules: Sequence[tuple[str, float, int, int, int, Sequence[int | tuple[int, int]], bool]]
    ) -> None: ...
    def save(self) -> bytes: ...
    def restore(self, state: bytes) -> None: ...
    def forget(self) -> None: ...
    def reduce(self, columns: Columns, into: Columns, now_us: int, last: bool = False) -> int: ...
