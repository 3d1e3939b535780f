from typing_extensions import Buffer

from cy_core.plan import Plan

class FrameDecoder:
    plan: Plan
    def __init__(self, plan: Plan) -> None: ...
    def decode(
        self, bus: str, can_id: int, data: Buffer, *, extended: bool = False, raw: bool = False
    ) -> dict[str, int | float | str]: ...
