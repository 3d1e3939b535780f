"""A thread for calls that may hang, and futures that it settles in the event loop."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """A daemon thread that runs calls one after the other. Daemon: a call that hangs does not hinder the exit."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                settle(loop, future, error, None)
            else:
                settle(loop, future, None, result)

        self.post(run)
        return future

    def post(self, function: Callable[[], None]) -> None:
        """Nobody waits for this one; it must not raise."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="iothub", daemon=True)
            self._thread.start()
        self._calls.put(function)

    def stop(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def settle(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]", error: Any, result: Any) -> None:
    """Settle a future from another thread."""
    soon(loop, settle_now, future, error, result)


def soon(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Have the loop call function; from any thread."""
    with suppress(RuntimeError):  # the loop is closed: we are on our way out
        loop.call_soon_threadsafe(function, *arguments)


def settle_now(future: "asyncio.Future[Any]", error: Any, result: Any) -> None:
    """Settle a future if anybody still waits for it."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
