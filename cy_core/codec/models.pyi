from typing_extensions import Buffer

LINE_BYTES: int
LINES_MOST: int

class Models:
    def __init__(self, trained: Buffer | None = None) -> None: ...
    def dump(self) -> bytes: ...
