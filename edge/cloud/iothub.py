"""IoT Hub, through IoT Edge's hub or directly: one supervised client of azure-iot-device.

    run:  build ─► connect ─► subscribe ─► get the twin ─► hold ─┐     a drop, a call without an answer, a token
            ▲                                                    │     that gets old, a refused credential:
            └── wait (growing, with jitter) ◄── shut down ◄──────┘     always the same way round

The SDK's own retries, token renewal and twin refresh are what wedges it (defects D1 to D4, D7, D11, D13), so they
are off: a client lives for one connection, and its token is never old enough to be renewed. Every call has a time
limit and runs in a thread that may hang without blocking the loop or the exit. What was in flight when the
client goes fails with CloudUnreachable; the caller sends it again. After MAX_REBUILDS failures in a row that
last longer than EXIT_SECONDS, run raises: edgeAgent restarts the module (twenty restarts within ten minutes each
would make it give up, so exiting is no retry loop).
"""

import asyncio
import logging
import math
import random
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

from edge.cloud import OnMethod, OnTwin
from edge.cloud.identity import Identity, certificate_state, direct_identity, edge_identity
from edge.cloud.worker import Worker, settle, settle_now, soon
from edge.errors import CloudUnreachable, MessageRejected
from edge.message import MAX_MESSAGE_BYTES

log = logging.getLogger(__name__)

TOKEN_SECONDS = 3600
RENEW_SECONDS = 3000.0  # the SDK would renew, and wedge, 120 s before the token's end
CALL_SECONDS = 30.0
CLOSE_SECONDS = 2.0
TWIN_SECONDS = 1800.0  # the twin is read again, in case a notification was lost
STEADY_SECONDS = 60.0  # a connection that dropped earlier than this does not shorten the next wait
MAX_REBUILDS = 10
CONNECTION_LOST = 7  # paho's MQTT_ERR_CONN_LOST
EXIT_SECONDS = 900.0

T = TypeVar("T")


class IoTHub:
    """The connection of the module, or device, that the environment names. Raises InputError if it names none."""

    def __init__(self, direct: bool = False) -> None:
        self._identity = direct_identity() if direct else edge_identity()
        self.vehicle = self._identity.device
        self.problem = "not connected yet"
        self.on_twin: OnTwin = lambda twin: None
        self.on_method: OnMethod | None = None
        self.retry_min_s = 1.0
        self.retry_max_s = 60.0
        self.counters: Counter[str] = Counter()
        self._client: Any = None
        self._worker = Worker()
        self._connected = asyncio.Event()
        self._attention = asyncio.Event()
        self._lost = ""  # why the client has to go
        self._twin_stale = False
        self._read_at, self._refusals = 0.0, 0  # when to ask for the twin, and how often that was refused
        self._waiting: set[asyncio.Future[Any]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        await self._connected.wait()

    async def run(self) -> None:
        """Connect and stay connected until cancelled. Raises CloudUnreachable if only a new process can help."""
        _quieten_sdk(self.counters)
        with _network_thread_watched():
            await self._stay_connected()

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        failures, last_good = 0, loop.time()
        while True:
            opened = None
            try:
                await self._open()
                opened = loop.time()
                log.info("connected to %s", self._identity.host)
                try:
                    await self._hold()
                finally:
                    last_good = loop.time()
                    failures = 0 if last_good - opened > STEADY_SECONDS else failures
            except CloudUnreachable as error:
                self.problem = str(error)
                if self._identity.certificate and opened is None:
                    self.problem += f"; {certificate_state(self._identity.certificate, self._identity.key)}"
                log.warning("no connection: %s", self.problem)
            finally:
                await self._close()
            failures += 1
            if failures > MAX_REBUILDS and loop.time() - last_good > EXIT_SECONDS:
                raise CloudUnreachable(f"no connection after {failures} attempts; a new process may have more luck")
            self.counters["rebuilds"] += 1
            delay = min(self.retry_min_s * 2 ** min(failures - 1, 16), self.retry_max_s)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def send(self, body: bytes, message_id: str, properties: Mapping[str, str], timeout_s: float) -> None:
        """Return once the hub has the message. Raises CloudUnreachable, MessageRejected (too large)."""
        size = len(body) + len(self._identity.topic) + len(_bag(*properties.items())) + len(f"&$.mid={message_id}")
        if size > MAX_MESSAGE_BYTES:
            raise MessageRejected(f"message {message_id} has {size} bytes; the most is {MAX_MESSAGE_BYTES}")
        if not self.connected:
            raise CloudUnreachable("not connected")
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        client = self._client
        self._worker.post(lambda: _submit(client, body, message_id, properties, acknowledged))
        await self._limited(f"message {message_id}", acknowledged, timeout_s)

    async def report(self, patch: dict[str, Any]) -> None:
        """Merge a patch into the reported properties. Raises CloudUnreachable, MessageRejected."""
        if not self.connected:
            raise CloudUnreachable("not connected")
        try:
            await self._call("reported properties", lambda: self._client.patch_twin_reported_properties(patch))
        except CloudUnreachable as error:
            if "status 400" in str(error):
                raise MessageRejected(str(error)) from error
            raise

    # The life of one client

    async def _open(self) -> None:
        self._worker, self._lost = Worker(), ""
        self._attention.clear()
        self._client = await self._call("building the client", lambda: _create_client(self._identity))
        await self._call("connecting", lambda: self._client.connect())
        loop = asyncio.get_running_loop()
        await self._call("subscribing", lambda: self._subscribe(loop))
        await self._read_twin()
        self._connected.set()

    def _subscribe(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the worker: the setters block until the hub has answered."""
        client = self._client

        def on_state() -> None:
            if not client.connected:
                soon(loop, self._lose, client, "the connection dropped")

        client.on_connection_state_change = on_state
        client.on_background_exception = lambda error: soon(loop, self._count, "background_exceptions")
        client.on_twin_desired_properties_patch_received = lambda patch: soon(loop, self._want_twin)
        if self.on_method is not None:
            client.on_method_request_received = lambda request: soon(loop, self._start_method, client, request)
        on_state()

    async def _hold(self) -> None:
        """Return when the client has to go."""
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + (RENEW_SECONDS if self._identity.has_token else math.inf)
        while not self._lost and loop.time() < renew_at:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(renew_at, self._read_at)):
                    await self._attention.wait()
            self._attention.clear()
            is_due = loop.time() >= self._read_at or (self._twin_stale and not self._refusals)
            if not self._lost and is_due:
                await self._read_twin()
        log.info("building a new client: %s", self._lost or "its token gets old")

    async def _read_twin(self) -> None:
        """A hub that answers that it will not just now (429, it throttles) keeps its connection, because messages go
        without the twin: the last one holds. It is asked again, later and later."""
        loop = asyncio.get_running_loop()
        self._twin_stale = False
        try:
            twin = await self._call("the twin", lambda: self._client.get_twin())
        except CloudUnreachable as error:
            if self._lost:
                raise
            self.counters["twin_refused"] += 1
            self.problem = str(error)
            delay = min(self.retry_min_s * 2 ** min(self._refusals, 16), self.retry_max_s) * random.uniform(0.5, 1.0)
            self._refusals += 1
            self._read_at = loop.time() + delay
            log.warning("asking for the twin again in %.1f s: %s", delay, error)
        else:
            self.problem, self._refusals, self._read_at = "", 0, loop.time() + TWIN_SECONDS
            self.on_twin(twin)

    async def _close(self) -> None:
        """Shut the client down, in a thread of its own: the worker may hang."""
        self._connected.clear()
        client, self._client = self._client, None
        self._worker.stop()
        for answer in list(self._waiting):
            settle_now(answer, CloudUnreachable(self._lost or "the client was shut down"), None)
        if client is None:
            return
        undertaker = Worker()
        with suppress(TimeoutError, Exception):
            async with asyncio.timeout(CLOSE_SECONDS):
                await undertaker.call(client.shutdown)
        undertaker.stop()

    def _lose(self, client: Any, reason: str) -> None:
        if client is self._client:
            self._lost = self.problem = self._lost or reason
            self._connected.clear()
            self._attention.set()

    def _want_twin(self) -> None:
        self._twin_stale = True
        self._attention.set()

    def _count(self, name: str) -> None:
        self.counters[name] += 1

    # Calls

    async def _call(self, what: str, function: Callable[[], T]) -> T:
        return await self._limited(what, self._worker.call(function), CALL_SECONDS)

    async def _limited(self, what: str, answer: "asyncio.Future[T]", seconds: float) -> T:
        """The answer. Whatever goes wrong is CloudUnreachable; no answer at all costs the client."""
        client = self._client
        self._waiting.add(answer)
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except CloudUnreachable:
            raise
        except TimeoutError as error:
            self._lose(client, f"no answer to {what} in {seconds:.0f} s")
            raise CloudUnreachable(f"no answer to {what} in {seconds:.0f} s") from error
        except Exception as error:  # the SDK lets requests', ssl's and its own errors through
            cause = error.__cause__ or error
            if type(cause).__name__ != "ServiceError":  # which is an answer
                self._lose(client, f"{what}: {cause}")
            raise CloudUnreachable(f"{what}: {type(cause).__name__}: {cause}") from error
        finally:
            self._waiting.discard(answer)

    def _start_method(self, client: Any, request: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(client, request), name=f"method {request.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, client: Any, request: Any) -> None:
        from azure.iot.device import MethodResponse

        assert self.on_method is not None
        try:
            status, payload = await self.on_method(request.name, request.payload)
        except Exception as error:
            log.exception("method %s failed", request.name)
            status, payload = 500, {"error": str(error)}
        response = MethodResponse.create_from_method_request(request, status, payload)
        if client is self._client:
            with suppress(CloudUnreachable):
                await self._call("method response", lambda: client.send_method_response(response))


def _create_client(identity: Identity) -> Any:
    """In the worker: the import takes 0.3 s, and the workload socket is asked without a time limit."""
    # requests would load the tables of every East Asian encoding, 3 MB, to guess at answers that name their own.
    sys.modules.setdefault("charset_normalizer", None)  # type: ignore[arg-type]
    warnings.filterwarnings("ignore", module="requests")
    from azure.iot.device import X509, IoTHubDeviceClient, IoTHubModuleClient

    settings: dict[str, Any] = {"auto_connect": False, "connection_retry": False, "ensure_desired_properties": False}
    if identity.under_edge:
        return IoTHubModuleClient.create_from_edge_environment(sastoken_ttl=TOKEN_SECONDS, **settings)
    if identity.trusted:
        settings["server_verification_cert"] = identity.trusted
    kind = IoTHubModuleClient if identity.module else IoTHubDeviceClient
    if identity.connection_string:
        return kind.create_from_connection_string(identity.connection_string, sastoken_ttl=TOKEN_SECONDS, **settings)
    certificate = X509(identity.certificate, identity.key)  # type: ignore[no-untyped-call]
    names = [identity.host, identity.device] + ([identity.module] if identity.module else [])
    return kind.create_from_x509_certificate(certificate, *names, **settings)


def _submit(
    client: Any, body: bytes, message_id: str, properties: Mapping[str, str], acknowledged: "asyncio.Future[None]"
) -> None:
    """In the worker: hand a message to the SDK, and settle the future from its callback.

    This is the inside of the public send_message, which waits for the acknowledgement in the calling thread:
    with it, messages in flight would need a thread each, and would go out in any order (D10).
    """
    from azure.iot.device import Message

    loop = acknowledged.get_loop()
    message = Message(body, message_id=message_id)  # type: ignore[no-untyped-call]
    message.content_type = properties.get("$.ct")
    message.content_encoding = properties.get("$.ce")
    try:
        client._mqtt_pipeline.send_message(
            message, callback=lambda error=None, **_: settle(loop, acknowledged, error, None)
        )
    except Exception as error:
        settle(loop, acknowledged, error, None)


@lru_cache(16)
def _bag(*properties: tuple[str, str]) -> str:
    """Properties as they stand in a topic."""
    return "&".join(f"{quote(name)}={quote(value, safe='')}" for name, value in properties)


@contextmanager
def _network_thread_watched() -> Iterator[None]:
    """When paho's thread dies (of an SSLEOFError, for one), tell the SDK what paho did not: the connection is lost.

    Otherwise the SDK waits for ever, also in its shutdown.
    """
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(arguments.exc_traceback)]
        client = next((owner for owner in owners if type(owner).__module__ == "paho.mqtt.client"), None)
        if client is None:
            before(arguments)
        else:
            log.warning("the network thread died: %r", arguments.exc_value)
            client.on_disconnect(client, None, CONNECTION_LOST)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class _SdkLog(logging.Handler):
    """One line for each of the SDK's warnings and tracebacks; edge.log limits their rate (D15)."""

    def __init__(self, counters: Counter[str]) -> None:
        super().__init__(logging.WARNING)
        self._counters = counters

    def emit(self, record: logging.LogRecord) -> None:
        self._counters["sdk_warnings"] += 1
        lines = record.getMessage().strip().splitlines()
        if lines and not lines[0].startswith("Exception caught in background"):  # the next record says which
            log.warning("SDK: %s", lines[-1])


def _quieten_sdk(counters: Counter[str]) -> None:
    sdk = logging.getLogger("azure.iot.device")
    sdk.setLevel(logging.WARNING)
    sdk.handlers[:] = [_SdkLog(counters)]
    sdk.propagate = False
