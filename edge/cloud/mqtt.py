"""An MQTT broker as the cloud (Event Grid namespaces, Mosquitto): MQTT 3.1.1 over TLS, X.509, a persistent session.

    run:  connect ─► subscribe ─► hold ─┐      one client for each connection; whatever goes wrong with it,
            ▲                           │      what was in flight fails with CloudUnreachable, and is sent again
            └── wait, with jitter ◄─────┘

| topic | who | what |
|---|---|---|
| `bordnetz/<vehicle>/<module>/messages` | module | messages, QoS 1 |
| `bordnetz/<vehicle>/<module>/desired` | cloud, retained | the desired properties, a JSON object |
| `bordnetz/<vehicle>/<module>/reported` | module, retained | all reported properties |
| `bordnetz/<vehicle>/<module>/call/<method>/<rid>` | cloud | a direct method: payload in JSON |
| `bordnetz/<vehicle>/<module>/answer/<rid>` | module | `{"status": …, "payload": …}` |

Desired properties are retained, so what changed during an outage arrives on connecting. A broker's acknowledgement is
no promise that the message survives it: a Mosquitto that is killed forgets what it had queued. The uplink's `confirm`
is what closes that gap.
"""

import asyncio
import json
import logging
import os
import random
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any, Self
from urllib.parse import urlsplit

import aiomqtt

from edge.cloud import OnMethod, OnTwin
from edge.cloud.identity import certificate_state
from edge.errors import CloudUnreachable, InputError, MessageRejected
from edge.message import MAX_MESSAGE_BYTES
from edge.twin import merge_patch

log = logging.getLogger(__name__)

PORT, PLAIN_PORT = 8883, 1883
CALL_SECONDS = 30.0
KEEPALIVE_SECONDS = 30
STEADY_SECONDS = 60.0
MAX_REBUILDS = 10
EXIT_SECONDS = 900.0
QOS = 1
_NAME = re.compile(r"[^/+#\s\x00-\x1f]{1,128}")


class Mqtt:
    """context: makes the TLS context, anew for each connection, so that a renewed certificate is taken.

    certificate: paths of what the module shows and of its key, to tell what may be wrong with it. Raises InputError: a
    name that no topic can hold.
    """

    def __init__(
        self,
        host: str,
        port: int,
        vehicle: str,
        module: str,
        context: Callable[[], ssl.SSLContext],
        certificate: tuple[str, str] | None = None,
    ) -> None:
        for name in (vehicle, module):
            if not _NAME.fullmatch(name):
                raise InputError(
                    "BORDNETZ_VEHICLE", f"{name[:60]!r} cannot be part of a topic", "leave out / + # and spaces"
                )
        self.vehicle = vehicle
        self.on_twin: OnTwin = lambda twin: None
        self.on_method: OnMethod | None = None
        self.retry_min_s, self.retry_max_s = 1.0, 60.0
        self.counters: Counter[str] = Counter()
        self.problem = "not connected yet"
        self._host, self._port, self._context, self._certificate = host, port, context, certificate
        self._id = f"{vehicle}/{module}"
        self._root = f"bordnetz/{vehicle}/{module}"
        self._client: aiomqtt.Client | None = None
        self._connected = asyncio.Event()
        self._failed = asyncio.Event()
        self._desired: dict[str, Any] = {}
        self._reported: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def from_environment(cls, url: str, module: str) -> "Mqtt":
        """edge/cloud/choose.py. Raises InputError."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or PORT
        except ValueError:
            host, port = None, 0
        if not host or url.rstrip("/").count("/") > 2:
            raise InputError("BORDNETZ_CLOUD", f"{url[:60]!r} is no broker", "give mqtts://host or mqtts://host:port")
        vehicle = os.environ.get("BORDNETZ_VEHICLE") or os.environ.get("IOTEDGE_DEVICEID")
        if not vehicle:
            raise InputError("BORDNETZ_VEHICLE", "is not set", "name the vehicle")
        tls_context()
        certificate = os.environ.get("BORDNETZ_CERTIFICATE", ""), os.environ.get("BORDNETZ_KEY", "")
        return cls(host, port, vehicle, module, tls_context, certificate)

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        await self._connected.wait()

    async def run(self) -> None:
        """Connect and stay connected until cancelled. Raises CloudUnreachable if only a new process can help."""
        loop = asyncio.get_running_loop()
        failures, last_good = 0, loop.time()
        while True:
            opened: float | None = None
            client: _Client | None = None
            try:
                client = self._new_client()
                async with client:
                    await self._open(client)
                    opened = loop.time()
                    await self._hold(client)
            except (aiomqtt.MqttError, OSError, ValueError, TimeoutError, InputError) as error:
                if _is_cancelled():  # closing a broken client raises, and would hide that
                    raise asyncio.CancelledError from error
                self.problem = _reason(error)
                if self._certificate and opened is None:
                    self.problem += f"; {certificate_state(*self._certificate)}"
            finally:
                self._client = None
                self._connected.clear()
                self._failed.set()
                if client is not None:
                    client.drop()
            if opened is not None:
                last_good = loop.time()
                failures = 0 if last_good - opened > STEADY_SECONDS else failures
            log.warning("no connection to %s: %s", self._host, self.problem)
            failures += 1
            if failures > MAX_REBUILDS and loop.time() - last_good > EXIT_SECONDS:
                raise CloudUnreachable(f"no connection after {failures} attempts: {self.problem}")
            self.counters["rebuilds"] += 1
            delay = min(self.retry_min_s * 2 ** min(failures - 1, 16), self.retry_max_s)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def send(self, body: bytes, message_id: str, properties: Mapping[str, str], timeout_s: float) -> None:
        """Return once the broker has the message. Raises CloudUnreachable, MessageRejected (too large).

        MQTT 3.1.1 has no properties; a broker's subscriber knows the content by the topic.
        """
        size = len(body) + len(self._root)
        if size > MAX_MESSAGE_BYTES:
            raise MessageRejected(f"message {message_id} has {size} bytes; the most is {MAX_MESSAGE_BYTES}")
        await self._publish(f"{self._root}/messages", body, f"message {message_id}", timeout_s)

    async def report(self, patch: dict[str, Any]) -> None:
        """Merge a patch into the reported properties. Raises CloudUnreachable."""
        merged = merge_patch(self._reported, patch)
        await self._publish(f"{self._root}/reported", json.dumps(merged).encode(), "reported properties", retain=True)
        self._reported = merged

    def _new_client(self) -> "_Client":
        return _Client(
            self._host,
            self._port,
            identifier=self._id,
            clean_session=False,
            tls_context=self._context(),
            keepalive=KEEPALIVE_SECONDS,
            timeout=CALL_SECONDS,
            max_queued_outgoing_messages=0,
            logger=_quiet(),
        )

    async def _open(self, client: aiomqtt.Client) -> None:
        self._failed.clear()
        client.pending_calls_threshold = 1000
        # The client keeps only the newest answer of an overlapping filter: one each, and the retained come first.
        for name in ("desired", "reported", "call/#"):
            await client.subscribe(f"{self._root}/{name}", QOS)
        self._client, self.problem = client, ""
        self.counters["connects"] += 1
        self._connected.set()
        log.info("connected to %s:%d", self._host, self._port)
        self._tell_twin()

    def _tell_twin(self) -> None:
        self.on_twin({"desired": self._desired, "reported": self._reported})

    async def _hold(self, client: aiomqtt.Client) -> None:
        """Take what arrives, until the connection breaks or a call goes unanswered."""
        taking = asyncio.create_task(self._take_all(client), name="mqtt: receive")
        failed = asyncio.create_task(self._failed.wait(), name="mqtt: failed")
        try:
            await asyncio.wait([taking, failed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            failed.cancel()
            if not taking.done():
                taking.cancel()
            result = (await asyncio.gather(taking, return_exceptions=True))[0]
        if isinstance(result, Exception):
            raise result

    async def _take_all(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            name = message.topic.value.removeprefix(f"{self._root}/")
            payload = message.payload if isinstance(message.payload, bytes) else b""
            if name == "desired":
                self._take_desired(payload)
            elif name == "reported" and not self._reported:
                with suppress(ValueError):
                    found = json.loads(payload)
                    self._reported = found if isinstance(found, dict) else {}
                    self._tell_twin()
            elif name.startswith("call/") and name.count("/") == 2:
                _, method, rid = name.split("/")
                task = asyncio.create_task(self._answer(method, rid, payload), name=name)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _take_desired(self, payload: bytes) -> None:
        try:
            desired = json.loads(payload) if payload else {}
        except ValueError:
            desired = None
        if not isinstance(desired, dict):
            self.counters["malformed"] += 1
            log.warning("%s/desired is no JSON object: the settings stay as they are", self._root)
            return
        self._desired = desired
        self._tell_twin()

    async def _answer(self, method: str, rid: str, payload: bytes) -> None:
        status, answer = 404, {"error": "this module takes no methods"}
        if self.on_method is not None:
            try:
                status, answer = await self.on_method(method, json.loads(payload) if payload else None)
            except ValueError as error:
                status, answer = 400, {"error": str(error)}
            except Exception as error:
                log.exception("method %s failed", method)
                status, answer = 500, {"error": str(error)}
        body = json.dumps({"status": status, "payload": answer}).encode()
        with suppress(CloudUnreachable):
            await self._publish(f"{self._root}/answer/{rid}", body, f"answer to {method}")

    async def _publish(
        self, topic: str, body: bytes, what: str, timeout_s: float = CALL_SECONDS, retain: bool = False
    ) -> None:
        client = self._client
        if client is None:
            raise CloudUnreachable("not connected")
        publish = asyncio.ensure_future(client.publish(topic, body, QOS, retain, timeout=timeout_s))
        failed = asyncio.ensure_future(self._failed.wait())
        try:
            await asyncio.wait([publish, failed], return_when=asyncio.FIRST_COMPLETED)
            if not publish.done():
                raise CloudUnreachable(f"the connection dropped at {what}: {self.problem}")
            await publish
        except (aiomqtt.MqttError, OSError, ValueError) as error:
            if self._client is client:  # no answer in time, or a broken client: it has to go
                self._failed.set()
            raise CloudUnreachable(f"{what}: {_reason(error)}") from error
        finally:
            failed.cancel()
            publish.cancel()
            await asyncio.gather(publish, failed, return_exceptions=True)


async def listen(
    host: str, port: int | None, tls: bool, user: tuple[str | None, str | None], topic: str
) -> AsyncIterator[bytes]:
    """What a topic says, the retained word first, while the connection lasts. Raises CloudUnreachable, InputError."""
    client = _Client(
        host,
        port or (PORT if tls else PLAIN_PORT),
        username=user[0],
        password=user[1],
        tls_context=tls_context() if tls else None,
        keepalive=KEEPALIVE_SECONDS,
        timeout=CALL_SECONDS,
        logger=_quiet(),
    )
    try:
        async with client:
            await client.subscribe(topic, QOS)
            async for message in client.messages:
                yield message.payload if isinstance(message.payload, bytes) else b""
    except (aiomqtt.MqttError, OSError, ValueError, TimeoutError) as error:
        if _is_cancelled():
            raise asyncio.CancelledError from error
        raise CloudUnreachable(_reason(error)) from error
    finally:
        client.drop()


class _Client(aiomqtt.Client):
    """What aiomqtt 2.0 leaves out: a broker that breaks off before its CONNACK (as it does on a wrong certificate) is
    noticed at once, and the socket of a broken connection does not stay with the loop."""

    async def __aenter__(self) -> Self:
        entering = asyncio.ensure_future(super().__aenter__())
        ends: list[asyncio.Future[Any]] = [entering, self._disconnected]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not entering.done():
                raise aiomqtt.MqttError(str(self._disconnected.exception() or "the broker broke off"))
            return await entering
        finally:
            if not entering.done():
                entering.cancel()
                await asyncio.gather(entering, return_exceptions=True)

    def drop(self) -> None:
        """Close what may still be open."""
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()  # seen
        if self._misc_task is not None:
            self._misc_task.cancel()
        if (sock := self._client.socket()) is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()


def tls_context() -> ssl.SSLContext:
    """From BORDNETZ_CA, BORDNETZ_CERTIFICATE and BORDNETZ_KEY. Raises InputError: a file is missing or no PEM."""
    ca = os.environ.get("BORDNETZ_CA") or None
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"BORDNETZ_CA {ca}", f"holds no certificates ({error})", "give a PEM file") from error
    certificate, key = os.environ.get("BORDNETZ_CERTIFICATE"), os.environ.get("BORDNETZ_KEY")
    if certificate:
        try:
            context.load_cert_chain(certificate, key or None)
        except (OSError, ssl.SSLError) as error:
            place = f"BORDNETZ_CERTIFICATE {certificate}, BORDNETZ_KEY {key}"
            raise InputError(place, f"do not go together ({error})", "give a PEM certificate and its key") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}"


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _quiet() -> logging.Logger:
    """What aiomqtt and paho say of every packet is for their makers."""
    logger = logging.getLogger("edge.cloud.mqtt.client")
    logger.setLevel(logging.ERROR)
    return logger
