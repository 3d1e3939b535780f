"""The MQTT server that modules connect to: 3.1.1 over TLS on port 8883, for identities that are known.

    CONNECT ──► identity and SAS token, or certificate ──► session ──► SUBSCRIBE, PINGREQ … answered here
                                                                       PUBLISH ──► take(), then its PUBACK

Subscriptions outlive a connection. Every packet of a module is answered in Broker._handle: a hub with faults overrides
that. What is published means nothing here: that is the hub's.
"""

import asyncio
import logging
import ssl
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path

from simulator import mqtt
from simulator.acknowledger import Acknowledger
from simulator.clock import Clock
from simulator.connection import METHOD_CALLS, TWIN_ANSWERS, TWIN_PATCHES, Connection
from simulator.identities import Identities
from simulator.memory import Memory
from simulator.sas import has_expired
from simulator.tasks import Tasks
from simulator.telemetry import MessageStore

log = logging.getLogger(__name__)

PORT = 8883
CONNECT_SECONDS = 60
KEEPALIVE_MOST_SECONDS = 600
TOKEN_CHECK_SECONDS = 300.0
MOST_CLIENTS = 100  # of edgeHub
MOST_CONNECTIONS = 1000


class Broker(ABC):
    """keys: each module's identity key, which the workload API signs with; "" is the device itself.

    counters: connects, refused (CONNACK other than 0), kicked (by the same identity), expired (tokens), malformed,
    duplicates (DUP set). Raises InputError: hub.json in folder cannot be read.
    """

    def __init__(self, name: str, device: str, address: str, folder: Path, keys: dict[str, bytes]) -> None:
        self.name = name
        self.device = device
        self.address = address
        self.counters: Counter[str] = Counter()
        self.clock = Clock()
        self.identities = Identities(device, (name, address), keys, self.clock.now)
        self.store = MessageStore(folder / "messages", name)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._memory = Memory(folder / "hub.json")
        for identity in keys:
            self._memory.recall(identity)
        self._connections: dict[str, Connection] = {}
        self._server: asyncio.Server | None = None
        self._tasks = Tasks()
        self._acknowledger = Acknowledger(self.store, self._tasks)
        self._change = asyncio.Event()

    async def start(self, certificate: Path, key: Path) -> None:
        """Raises OSError where the address cannot be bound."""
        self.tls.load_cert_chain(certificate, key)
        self._server = await asyncio.start_server(self._connected, self.address, PORT, ssl=self.tls)
        self._tasks.start(self._check_tokens(), "hub: token check")

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.disconnect_all()
        await self._tasks.end()
        self.store.close()

    @property
    def subscriptions(self) -> dict[str, dict[str, int]]:
        """By identity: filter to granted QoS."""
        return self._memory.subscriptions

    def trust(self, certificate: Path) -> None:
        """Let TLS pass a client's certificate, or all that this CA has made. Whom it lets in, thumbprints say."""
        self.tls.load_verify_locations(certificate)
        self.tls.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        self.tls.verify_mode = ssl.CERT_OPTIONAL

    def disconnect(self, identity: str) -> None:
        connection = self._connections.get(identity)
        if connection is not None:
            connection.close()

    def disconnect_all(self) -> None:
        for connection in list(self._connections.values()):
            connection.close()

    def is_connected(self, identity: str) -> bool:
        return identity in self._connections

    async def changed(self, timeout_s: float) -> None:
        """Return once anything changes: a message, a twin, a connection, a module's state. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):  # wait_for loses a cancellation that comes together with the change
            await self._change.wait()

    def tell(self) -> None:
        """Wake who waits for a change."""
        self._change.set()
        self._change = asyncio.Event()

    @abstractmethod
    def _take(self, connection: Connection, module: str, message: mqtt.Publish, wire_bytes: int) -> None:
        """Do what a message asks for; durable with the next sync of the store. Raises Malformed, OSError."""

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) > MOST_CONNECTIONS:
            writer.close()
        else:
            self._tasks.start(self._serve(reader, Connection(writer), writer), "hub: connection")

    async def _serve(self, reader: asyncio.StreamReader, connection: Connection, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                keepalive_s = await self._accept(connection, await mqtt.read_packet(reader))
            while keepalive_s:
                async with asyncio.timeout(1.5 * keepalive_s):
                    packet = await mqtt.read_packet(reader)
                if packet.kind == mqtt.DISCONNECT or connection.is_closing:
                    break
                await self._handle(connection, connection.module, packet)
                async with asyncio.timeout(1.5 * keepalive_s):
                    await writer.drain()
        except mqtt.Malformed as error:
            self.counters["malformed"] += 1
            log.warning("%s: connection closed: %s", connection.module or "?", error)
        except (OSError, EOFError, TimeoutError):  # also of TLS
            pass
        finally:
            if self._connections.get(connection.module) is connection:
                del self._connections[connection.module]
            connection.close()
            self.tell()

    async def _accept(self, connection: Connection, packet: mqtt.Packet) -> int:
        """Answer a CONNECT; return the seconds that the client may be silent, 0 where it was refused."""
        connect = mqtt.connect_of(packet)
        device, _, name = connect.client_id.partition("/")
        module = self.identities.of(device, name)
        code, reason, expiry = self.identities.judge(connect, module, connection.thumbprints())
        others = [one for one in self._connections if one != module and not self.identities.is_direct(one)]
        if code == mqtt.ACCEPTED and len(others) >= MOST_CLIENTS and not self.identities.is_direct(module):
            code, reason = mqtt.UNAVAILABLE, f"edgeHub has {MOST_CLIENTS} clients at most"
        if code != mqtt.ACCEPTED:
            self.counters["refused"] += 1
            log.warning("CONNECT of %r refused with %d: %s", connect.client_id, code, reason)
            connection.send(mqtt.connack(code))
            return 0
        self.counters["connects"] += 1
        older = self._connections.get(module)
        if older is not None:
            self.counters["kicked"] += 1
            older.close()
        if connect.clean:
            self.subscriptions[module].clear()
            self._keep()
        connection.module, connection.token_expiry = module, expiry
        connection.most_qos = 0 if self.identities.is_direct(module) else 1
        connection.subscriptions = self.subscriptions[module]
        self._connections[module] = connection
        connection.send(mqtt.connack(mqtt.ACCEPTED, session_present=bool(self.subscriptions[module])))
        self.tell()
        return min(connect.keepalive_s or KEEPALIVE_MOST_SECONDS, KEEPALIVE_MOST_SECONDS)

    async def _handle(self, connection: Connection, module: str, packet: mqtt.Packet) -> None:
        match packet.kind:
            case mqtt.PUBLISH:
                message = mqtt.publish_of(packet)
                self.counters["duplicates"] += message.is_duplicate
                self._take(connection, module, message, packet.wire_bytes)
                if message.qos:
                    self._acknowledge(connection, message.packet_id)
                self.tell()
            case mqtt.SUBSCRIBE:
                wanted = mqtt.subscribe_of(packet)
                connection.send(mqtt.suback(wanted.packet_id, self._subscribe(module, wanted.filters)))
            case mqtt.UNSUBSCRIBE:
                packet_id, filters = mqtt.unsubscribe_of(packet)
                for name in filters:
                    self.subscriptions[module].pop(name, None)
                self._keep()
                connection.send(mqtt.unsuback(packet_id))
            case mqtt.PINGREQ:
                connection.send(mqtt.pingresp())
            case mqtt.PUBACK:
                connection.acknowledged(mqtt.packet_id_of(packet))
            case _:
                raise mqtt.Malformed(f"a packet of kind {packet.kind}")

    def _acknowledge(self, connection: Connection, packet_id: int) -> None:
        self._acknowledger.acknowledge(connection, packet_id)

    def _subscribe(self, module: str, filters: list[tuple[str, int]]) -> list[int]:
        root = self.identities.path_of(module)
        known = (TWIN_ANSWERS, TWIN_PATCHES, METHOD_CALLS, f"{root}/inputs/#", f"{root}/messages/devicebound/#")
        self.subscriptions[module] |= {name: qos for name, qos in filters if name in known}
        self._keep()
        return [qos if name in known else mqtt.NOT_GRANTED for name, qos in filters]

    async def _check_tokens(self) -> None:
        """edgeHub looks every five minutes whose token has expired, and cuts the connection."""
        while True:
            await self.clock.sleep(TOKEN_CHECK_SECONDS)
            for connection in list(self._connections.values()):
                if has_expired(connection.token_expiry, self.clock.now()):
                    self.counters["expired"] += 1
                    connection.close()

    def _keep(self) -> None:
        self._memory.keep()
        self.tell()
