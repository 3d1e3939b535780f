from collections.abc import Iterable

from typing_extensions import Buffer

from cy_core.frames import Frames

class LineReader:
    lines: int
    bad_lines: int
    first_bad_lines: list[tuple[int, str]]
    def __init__(self, buses: Iterable[str] = ()) -> None: ...
    @property
    def buses(self) -> tuple[str, ...]: ...
    def parse(self, text: Buffer, frames: Frames, limit: int = -1, final: bool = False) -> int: ...
