from typing_extensions import Buffer

from cy_core.codec.models import Models
from cy_core.columns import Columns
from cy_core.plan import Plan

class SignalCodec:
    models: Models
    plan: Plan
    steps: dict[int, int]
    def __init__(self, plan: Plan, trained: Buffer | None = None, *, learning: bool = False) -> None: ...
    def encode(
        self,
        columns: Columns,
        selection: Buffer | None = None,
        steps: Buffer | None = None,
        tick_us: int = 1,
        tolerance_us: int = 0,
        exact: bool = False,
    ) -> bytes: ...
    @property
    def time_error_us(self) -> int: ...
    def decode(self, content: Buffer, into: Columns | None = None) -> Columns: ...
