from collections.abc import Sequence

from cy_core.columns import Columns
from cy_core.plan import Plan

KINDS: dict[str, int]

class Summariser:
    plan: Plan
    into: Plan
    def __init__(
        self,
        plan: Plan,
        into: Plan,
        summaries: Sequence[
            tuple[
                int,
                int,
                int,
                int,
                float,
                float,
                Sequence[float],
                Sequence[tuple[int, int]],
                Sequence[tuple[int, int]],
                int,
            ]
        ],
    ) -> None: ...
    def save(self) -> bytes: ...
    def restore(self, state: bytes) -> None: ...
    def forget(self) -> None: ...
    def summarise(self, columns: Columns, into: Columns, now_us: int, last: bool = False) -> int: ...
