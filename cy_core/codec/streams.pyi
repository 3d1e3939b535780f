from collections.abc import Iterable
from typing import Any

from typing_extensions import Buffer

from cy_core.codec.models import Models

class Streams:
    models: Models
    learning: bool
    def __init__(
        self, table: Iterable[tuple[Any, ...]] = (), trained: Buffer | None = None, *, learning: bool = False
    ) -> None: ...

def bus_key(name: str) -> int: ...
