"""What a module writes to stdout and stderr, in a file that does not grow for ever.

pipe ──► <name>.log, from LOG_BYTES on renamed to <name>.log.1        ──► on_line, if someone listens
"""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

LOG_BYTES = 10 << 20
LINE_BYTES = 64 * 1024  # a longer line reaches the listener in pieces


class ModuleLog:
    def __init__(self, path: Path, on_line: Callable[[bytes], None] | None = None) -> None:
        self._path = path
        self._on_line = on_line

    async def follow(self, pipe: int) -> None:
        """Copy from a descriptor until it ends, then close it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        reader = asyncio.StreamReader()
        file = os.fdopen(pipe, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), file
        )
        rest = b""
        try:
            while data := await reader.read(LINE_BYTES):
                self._write(data)
                rest = self._tell(rest + data)
        finally:
            transport.close()
        if rest:
            self._tell(rest + b"\n")

    def _write(self, data: bytes) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(data)
                size = file.tell()
            if size >= LOG_BYTES:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        except OSError as error:  # a full disk must not stop the module, which waits for its pipe
            log.warning("%s: %d bytes are lost: %s", self._path, len(data), error)

    def _tell(self, data: bytes) -> bytes:
        """Give whole lines to the listener; return the beginning of one that goes on."""
        *lines, rest = data.split(b"\n")
        if len(rest) >= LINE_BYTES:
            lines, rest = [*lines, rest], b""
        if self._on_line:
            for line in lines:
                self._on_line(line)
        return rest
