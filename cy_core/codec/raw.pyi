from collections.abc import Iterable, Sequence
from typing import Any

from typing_extensions import Buffer

from cy_core.codec.models import Models
from cy_core.frames import Frames

FRAMES_MAX: int

class RawCodec:
    models: Models
    learning: bool
    def __init__(
        self, table: Iterable[tuple[Any, ...]] = (), trained: Buffer | None = None, *, learning: bool = False
    ) -> None: ...
    def encode(
        self, frames: Frames, names: Sequence[str], tick_us: int = 1, start: int = 0, end: int = -1, *, version: int = 2
    ) -> bytes: ...
    def decode(self, content: Buffer, into: Frames, *, version: int = 2) -> tuple[str, ...]: ...
