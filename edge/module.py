"""What every module's process does: read its environment, take signals, report what changed, and end in order.

Exit: 0 stopped by SIGTERM or SIGINT, 1 to be restarted by the runtime, 2 started wrongly.
"""

import asyncio
import ctypes
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol

from edge import log as edge_log
from edge.errors import EdgeError, InputError
from edge.outbox import DEFAULT_QUOTA_BYTES, Outbox

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
CLAIM_SECONDS = 5.0
M_ARENA_MAX, M_MMAP_THRESHOLD = -8, -3  # <malloc.h>
LARGE_BYTES = 32 * 1024


def seconds_since_start() -> float:
    """How long this process has been there, from its first instruction on."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Reporter(Protocol):
    def report(self, patch: dict[str, Any]) -> None: ...


def from_environment(name: str, what: str) -> str:
    """A variable that must be set. Raises InputError."""
    value = os.environ.get(name)
    if not value:
        raise InputError(name, "is not set", f"name {what} in the module's env")
    return value


def open_outbox(module: str) -> tuple[Path, Outbox]:
    """The outbox named by BORDNETZ_OUTBOX and BORDNETZ_OUTBOX_BYTES, and its folder.

    Raises InputError: it cannot be used, or another process is the same module of it already.
    """
    folder = Path(from_environment("BORDNETZ_OUTBOX", "the outbox directory"))
    try:
        quota_bytes = int(os.environ.get("BORDNETZ_OUTBOX_BYTES") or DEFAULT_QUOTA_BYTES)
    except ValueError as error:
        raise InputError("BORDNETZ_OUTBOX_BYTES", "is not a number", "give bytes, as in 536870912") from error
    outbox = Outbox(folder, quota_bytes)
    try:
        _claim(folder, module)
    except BaseException:
        outbox.close()
        raise
    return folder, outbox


def _claim(folder: Path, module: str) -> None:
    """For the life of this process; who is replaced has a while to end. A full disk keeps no module from work."""
    try:
        file = os.open(folder / f"{module}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        log.warning("%s: cannot tell whether another %s is at work (%s)", folder, module, error.strerror)
        return
    deadline = time.monotonic() + CLAIM_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                problem = f"is in use by another {module}"
                raise InputError(folder, problem, "stop that one, or give this one a directory of its own") from error
            time.sleep(0.1)
        else:
            return


async def report_changes(
    twin: Reporter, status: Callable[[], Awaitable[dict[str, Any]]], interval_s: Callable[[], float]
) -> None:
    """Report status() when it has changed, but not more often than the settings say."""
    loop = asyncio.get_running_loop()
    reported: dict[str, Any] = {}
    due = loop.time()
    while True:
        now = await status()
        if now != reported and loop.time() >= due:
            twin.report(now)
            reported, due = now, loop.time() + interval_s()
        await asyncio.sleep(LOOK_SECONDS)


async def cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main(run: Callable[[asyncio.Event], Awaitable[None]], large_bytes: int = LARGE_BYTES) -> NoReturn:
    """Run a module until its run(stop) returns, and end the process.

    Buffers of large_bytes and more go back to the system at once; each costs its page faults anew.
    """
    # The SDK has a dozen threads, and each would get an arena of the heap for itself; and without a fixed threshold
    # the heap keeps the largest buffers it ever held.
    libc = ctypes.CDLL(None)
    libc.mallopt(M_ARENA_MAX, 1)
    libc.mallopt(M_MMAP_THRESHOLD, large_bytes)
    edge_log.setup()
    code = _main(run)
    sys.stdout.flush()
    os._exit(code)  # the SDK's threads may hang, and the interpreter would wait for them


def _main(run: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    try:
        asyncio.run(_until_signalled(run))
    except InputError as error:
        log.critical("%s", error)
        return 2
    except EdgeError as error:
        log.critical("%s", error)
        return 1
    except Exception:
        log.critical("unexpected", exc_info=True)
        return 1
    log.info("stopped")
    return 0


async def _until_signalled(run: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(stop)
