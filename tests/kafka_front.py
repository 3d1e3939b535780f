"""What an Event Hub's Kafka endpoint has and the broker of the tests has not: TLS and SASL PLAIN, before that broker.

client ──TLS──► handshake, PLAIN: answered here (Kafka protocol: SaslHandshake 1, SaslAuthenticate 0 and 1)
                all else: to the broker and back, once who asks has said who it is, as a broker does it
"""

import asyncio
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

API_VERSIONS, HANDSHAKE, AUTHENTICATE = 18, 17, 36
UNSUPPORTED_MECHANISM, REFUSED = 33, 58


class Front:
    def __init__(self, broker: str, context: ssl.SSLContext, user: str, password: str) -> None:
        self._broker, self._context = broker.split(":"), context
        self._secret = [user.encode(), password.encode()]  # after the identity to act as, which may be empty
        self.let_in = 0  # connections
        self.refused = 0

    async def start(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._context)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(*self._broker)
        with suppress(OSError, asyncio.IncompleteReadError):
            if await self._knows(reader, writer, up_reader, up_writer):
                self.let_in += 1
                await asyncio.gather(_pipe(reader, up_writer), _pipe(up_reader, writer))
        for one in (writer, up_writer):
            one.close()

    async def _knows(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> bool:
        while True:
            request = await _frame(reader)
            key, version, correlation = struct.unpack_from(">hhi", request)
            body = request[10 + max(0, struct.unpack_from(">h", request, 8)[0]) :]
            if key == API_VERSIONS:
                await _send(up_writer, request)
                await _send(writer, await _frame(up_reader))
            elif key == HANDSHAKE:
                error = 0 if body[2:] == b"PLAIN" else UNSUPPORTED_MECHANISM
                await _send(writer, struct.pack(">ihih5s", correlation, error, 1, 5, b"PLAIN"))
            elif key == AUTHENTICATE:
                is_right = body[4:].split(b"\0")[1:] == self._secret
                self.refused += not is_right
                answer = struct.pack(">ihhi", correlation, 0 if is_right else REFUSED, -1, 0)
                await _send(writer, answer + (bytes(8) if version else b""))
                if is_right:
                    return True
            else:
                return False


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


async def _send(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(struct.pack(">i", len(frame)) + frame)
    await writer.drain()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def serving(front: Front, port: int) -> Iterator[None]:
    """In a thread, until the end of the block."""
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        async with await front.start(port):
            ready.set()
            await ended.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    ended = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)
        loop.close()
