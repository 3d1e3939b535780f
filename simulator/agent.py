"""edgeAgent's part: modules as processes or containers, started in order, and restarted as edgeAgent restarts them.

    Agent.launch ──► python -m modules.<folder>.main, or docker run ──► log
                         ▲ ends ──► backoff: 10 s, 20 s … 5 min; failed after 20 restarts

A module's end takes what it has started with it, and the simulator's end takes the modules.
"""

import asyncio
import ctypes
import functools
import logging
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from simulator.clock import Clock
from simulator.modulelog import ModuleLog
from simulator.tasks import Tasks

log = logging.getLogger(__name__)

BACKOFF_SECONDS, BACKOFF_MOST_SECONDS = 10.0, 300.0
MOST_RESTARTS = 20
HEALTHY_SECONDS = 600.0
STOP_SECONDS = 10.0
LAST_ORDER = (1 << 32) - 1
LOG_SECONDS = 2.0  # for what is still in the pipe of a module that has ended
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # not in the child: threads that hold locks do not live on there


class Module:
    """A module of the manifest, and its process. state: stopped, running, backoff or failed."""

    def __init__(
        self, name: str, manifest: dict[str, Any], folder: str | None, environment: dict[str, str], log: ModuleLog
    ) -> None:
        self.name = name
        self.folder = folder
        self.environment = environment
        self.log = log
        self.restart_policy: str = manifest.get("restartPolicy", "always")
        self.startup_order: int = manifest.get("startupOrder", LAST_ORDER)
        self.wanted: bool = manifest.get("status", "running") == "running"
        self.process: asyncio.subprocess.Process | None = None
        self.state = "stopped"
        self.restarts = 0
        self.exit_code: int | None = None
        self.definition = manifest
        self.stopping = asyncio.Event()
        self.supervision: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.returncode is None else None

    @property
    def is_down(self) -> bool:
        """It should run, and does not: it waits for its restart, has failed, or has ended with an error for good."""
        return self.state in ("backoff", "failed") or (self.state == "stopped" and bool(self.exit_code))


class Launcher(Protocol):
    """How a module becomes a process; both may take a while."""

    def command(self, module: Module) -> list[str]:
        """Raises OSError."""

    def clean(self, module: Module) -> None:
        """Take away what a process of it has left behind. Raises OSError."""


class Processes:
    """python runs a module's main."""

    def __init__(self, python: str) -> None:
        self._python = python

    def command(self, module: Module) -> list[str]:
        return [self._python, "-m", f"modules.{module.folder}.main"]

    def clean(self, module: Module) -> None:
        pass  # its process group has been killed


class Agent:
    """root: the folder that modules run in. clock: what waiting goes by; scale shortens it. tell: after each change."""

    def __init__(self, root: Path, launcher: Launcher, clock: Clock, scale: float, tell: Callable[[], None]) -> None:
        self._root = root
        self._launcher = launcher
        self._clock = clock
        self._scale = scale
        self._tell = tell
        self._tasks = Tasks()
        self._starting = asyncio.Lock()  # first come, first served: startupOrder

    def launch(self, modules: Iterable[Module]) -> None:
        """Those that the manifest wants running, in startupOrder."""
        for module in sorted(modules, key=lambda module: module.startup_order):
            if module.wanted:
                module.supervision = self._tasks.start(self._supervise(module), f"module {module.name}")

    async def stop(self, modules: Iterable[Module]) -> None:
        """SIGTERM, after a while SIGKILL; returns when they have ended."""
        modules = list(modules)
        for module in modules:
            module.stopping.set()
        running = [module.supervision for module in modules if module.supervision is not None]
        if running:
            await asyncio.wait(running)

    async def kill(self, module: Module, number: signal.Signals = signal.SIGKILL) -> int | None:
        """Send a signal to a module's process, wait for its end and return its exit status; it is started again.

        None where there is no process just now.
        """
        process = module.process
        if process is None or process.returncode is not None:
            return None
        _signal(process, number)
        return await process.wait()

    async def _supervise(self, module: Module) -> None:
        """Run a module's process, and restart it as edgeAgent does."""
        while not module.stopping.is_set():
            started = self._clock.passed()
            await self._run(module)
            if module.stopping.is_set() or module.restart_policy != "always":
                break
            if self._clock.passed() - started > HEALTHY_SECONDS * self._scale:
                module.restarts = 0
            if module.restarts >= MOST_RESTARTS:
                log.error("module %s failed: restarted %d times", module.name, module.restarts)
                self._set_state(module, "failed")
                return
            delay = backoff_seconds(module.restarts) * self._scale
            module.restarts += 1
            self._set_state(module, "backoff")
            patience = asyncio.create_task(self._clock.sleep(delay), name=f"restart of {module.name}")
            stopping = asyncio.create_task(module.stopping.wait(), name=f"stop of {module.name}")
            await asyncio.wait([patience, stopping], return_when=asyncio.FIRST_COMPLETED)
            patience.cancel()
            stopping.cancel()
        self._set_state(module, "stopped")

    def _set_state(self, module: Module, state: str) -> None:
        module.state = state
        self._tell()

    async def _run(self, module: Module) -> None:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("IOTEDGE_", "BORDNETZ_"))}
        # A pipe of our own: with asyncio's, the end of a process is not seen while a child of it holds the pipe open.
        reading, writing = os.pipe()
        try:
            async with self._starting:
                module.process = process = await asyncio.create_subprocess_exec(
                    *await asyncio.to_thread(self._launcher.command, module),
                    cwd=self._root,
                    env={**inherited, **module.environment},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=writing,
                    stderr=asyncio.subprocess.STDOUT,
                    process_group=0,  # a Ctrl-C is for the simulator, which stops its modules in order
                    preexec_fn=functools.partial(_die_with_parent, os.getpid()),
                )
        except OSError as error:
            log.error("module %s cannot be started: %s", module.name, error)
            os.close(reading)
            return
        finally:
            os.close(writing)
        self._set_state(module, "running")
        output = asyncio.create_task(module.log.follow(reading), name=f"log of {module.name}")
        ended, stopping = asyncio.create_task(process.wait()), asyncio.create_task(module.stopping.wait())
        try:
            await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end(process)
            module.exit_code = await ended
        finally:
            stopping.cancel()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what the module has left behind
            try:
                await asyncio.to_thread(self._launcher.clean, module)
            except OSError as error:
                log.warning("module %s may have left something behind: %s", module.name, error)
            await asyncio.wait([output], timeout=LOG_SECONDS)
            output.cancel()
        log.info("module %s ended with %s", module.name, module.exit_code)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        _signal(process, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            _signal(process, signal.SIGKILL)


def backoff_seconds(restarts: int) -> float:
    """How long edgeAgent waits before it starts a module again that it has restarted so often."""
    return min(BACKOFF_SECONDS * 2.0**restarts, BACKOFF_MOST_SECONDS)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # Not process.send_signal: it may fetch the exit status of a process that has just ended, which is then lost.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _die_with_parent(parent: int) -> None:
    """In the child, before exec: end when the simulator does, however it ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
