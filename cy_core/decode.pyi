from cy_core.columns import Columns
from cy_core.frames import Frames
from cy_core.plan import Plan

class BatchDecoder:
    plan: Plan
    def __init__(self, plan: Plan) -> None: ...
    def decode_batch(self, frames: Frames, into: Columns | None = None, assembled: Frames | None = None) -> Columns: ...
