from collections.abc import Iterator

from typing_extensions import Buffer

from cy_core.plan import Plan

class Group:
    message: int
    times: memoryview[int]
    columns: list[tuple[int, str, memoryview[int]]]
    def __init__(
        self, message: int, times: memoryview[int], columns: list[tuple[int, str, memoryview[int]]]
    ) -> None: ...

class Columns(Buffer):
    plan: Plan
    frames: int
    unknown_frames: int
    short_frames: int
    remote_frames: int
    error_frames: int
    segment_frames: int
    assembled_messages: int
    def __init__(self, plan: Plan) -> None: ...
    def samples(self, selection: Buffer | None = None) -> int: ...
    def mark(self, seen: bytearray) -> None: ...
    def groups(self) -> Iterator[Group]: ...
