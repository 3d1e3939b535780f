"""Events of an Event Hub into a table as they come, over its Kafka endpoint; the only file that imports aiokafka.

    partitions ──► messages ──► <table>/vehicle=…/_received   durable
                                <table>/_checkpoints.json     only then: where each partition goes on
                                Parquet and audit, every build_s

Event Hubs (tiers with Kafka) take the connection string as a password; any Kafka broker without one will do, too. The
built-in endpoint of an IoT Hub has no Kafka: the hub needs a route to an Event Hub. IoT Hub's system properties come as
headers in the encoding of AMQP 1.0. Whoever kills it starts it again: what comes twice changes nothing. Events that
expired before they were read are a finding.
"""

import asyncio
import logging
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edge.durable import write_durably
from edge.errors import CloudUnreachable, InputError
from fleet.audit import Audit
from fleet.decode import Intake, keep_manifests, update
from fleet.folder import open_table
from fleet.lines import Manifests
from fleet.messages import EVENT_NAMES, Found, Place, Unreadable, take

CHECKPOINTS = "_checkpoints.json"
KAFKA_PORT = 9093
POLL_S = 1.0
ANSWER_S = 30.0
BATCH_EVENTS = 500
BATCH_BYTES = 32 << 20
EXPIRED = "events expired before they were read: offsets {} to {}"


class EventHub(msgspec.Struct, frozen=True):
    """servers: host:port; password: the whole connection string, or empty for a broker that asks for none."""

    servers: str
    name: str
    password: str = ""

    @property
    def key(self) -> str:
        return f"{self.servers}/{self.name}"


def eventhub_of(text: str) -> EventHub:
    """From a connection string with an EntityPath, or kafka://host:port/topic. Raises InputError, without secrets."""
    if text.startswith("kafka://"):
        url = urlsplit(text)
        if url.netloc and url.path.strip("/"):
            return EventHub(url.netloc, url.path.strip("/"))
        raise InputError("event hub", f"{text} names no broker and topic", "as in kafka://localhost:9092/telemetry")
    fields = dict(part.partition("=")[::2] for part in text.split(";"))
    host = urlsplit(fields.get("Endpoint", "")).hostname
    if not host or not fields.get("EntityPath") or "SharedAccessKey" not in fields:
        way_out = "Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…;EntityPath=…"
        raise InputError("event hub", "the connection string lacks Endpoint, SharedAccessKey or EntityPath", way_out)
    return EventHub(f"{host}:{KAFKA_PORT}", fields["EntityPath"], text)


def follow(
    hub: EventHub,
    table: Path,
    manifests: Manifests | Path | str | None,
    *,
    once: bool = False,
    build_s: float = 60.0,
    jobs: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> Audit:
    """Add events to the table until cancelled, or once: those that are there now. Returns what is in it then.

    Raises InputError as fleet.decode.decode does, and where the broker refuses us; CloudUnreachable: no answer.
    """
    with open_table(table):
        known = keep_manifests(manifests, table)
        try:
            asyncio.run(_follow(hub, table, known, once, build_s, jobs, say))
        except KeyboardInterrupt:
            say("ended; building what has come")
        return update(table, known, jobs)


async def _follow(
    hub: EventHub,
    table: Path,
    known: Manifests,
    once: bool,
    build_s: float,
    jobs: int,
    say: Callable[[str], None],
) -> None:
    built, events = time.monotonic(), 0
    async with _consumer(hub, table) as (consumer, intake):
        ends = await consumer.end_offsets(consumer.assignment())
        while not once or [at for at, end in ends.items() if await consumer.position(at) < end]:
            batches = await consumer.getmany(timeout_ms=round(POLL_S * 1000), max_records=BATCH_EVENTS)
            for partition, records in batches.items():
                for record in records:
                    intake.take(_found(hub, partition.partition, record))
                events += len(records)
            if batches:
                await asyncio.to_thread(intake.save)
                after = {partition.partition: records[-1].offset + 1 for partition, records in batches.items()}
                _save_checkpoints(table, hub, after)
            if events and time.monotonic() - built >= build_s:
                audit = await asyncio.to_thread(update, table, known, jobs)
                state = "complete" if audit.ok else "with findings, see the audit"
                say(f"{events:,} events; {len(audit.outboxes):,} outboxes, {state}")
                built, events = time.monotonic(), 0


@asynccontextmanager
async def _consumer(hub: EventHub, table: Path) -> AsyncIterator[tuple[Any, Intake]]:
    """All partitions, each from its checkpoint on, or from its first event."""
    try:
        from aiokafka import AIOKafkaConsumer, TopicPartition
        from aiokafka.errors import KafkaError
    except ImportError as error:
        way_out = "pip install 'bordnetz[eventhub]'"
        raise InputError(hub.key, "is an Event Hub, and aiokafka is not installed", way_out) from error
    options: dict[str, Any] = {}
    if hub.password:
        options = {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "$ConnectionString",
            "sasl_plain_password": hub.password,
            "ssl_context": ssl.create_default_context(),
        }
    consumer = AIOKafkaConsumer(
        bootstrap_servers=hub.servers,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_bytes=BATCH_BYTES,
        request_timeout_ms=round(ANSWER_S * 1000),
        **options,
    )
    refusals = _Refusals()
    logging.getLogger("aiokafka").addHandler(refusals)
    try:
        async with asyncio.timeout(ANSWER_S):
            await consumer.start()
            names = await _partitions(consumer, hub)
            partitions = [TopicPartition(hub.name, number) for number in sorted(names)]
            consumer.assign(partitions)
            first = await consumer.beginning_offsets(partitions)
        intake, known = Intake(table), load_checkpoints(table).get(hub.key, {})
        for partition in partitions:
            wanted = known.get(partition.partition, first[partition])
            if wanted < first[partition]:
                place = Place(Path(hub.name, str(partition.partition)), wanted)
                intake.take(Unreadable(place, EXPIRED.format(wanted, first[partition] - 1)))
            consumer.seek(partition, max(wanted, first[partition]))
        yield consumer, intake
    except TimeoutError as error:
        raise CloudUnreachable(f"{hub.key}: no answer within {ANSWER_S:g} s; try again later") from error
    except KafkaError as error:
        raise _plain(hub, refusals.last or error) from error
    finally:
        logging.getLogger("aiokafka").removeHandler(refusals)
        await consumer.stop()


class _Refusals(logging.Handler):
    """aiokafka tells its log why it could not connect, and its caller only that."""

    last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args or ():
            if isinstance(argument, BaseException):
                self.last = argument


def _plain(hub: EventHub, error: BaseException) -> Exception:
    reason = type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        way_out = "set SSL_CERT_FILE to the certificate of who vouches for it"
        return InputError(hub.key, f"its certificate is not trusted here ({error.verify_message})", way_out)
    if "Auth" in reason:
        return InputError(hub.key, f"refused us ({reason})", "look at the connection string")
    return CloudUnreachable(f"{hub.key}: {reason}; try again later")


async def _partitions(consumer: Any, hub: EventHub) -> Iterable[int]:
    topics = await consumer.topics()
    numbers = consumer.partitions_for_topic(hub.name) if hub.name in topics else None
    if not numbers:
        raise InputError(hub.key, "there is no such event hub", f"there are {', '.join(sorted(topics)) or 'none'}")
    return list(numbers)


def _found(hub: EventHub, partition: int, record: Any) -> Found:
    place = Place(Path(hub.name, str(partition)), record.offset)
    try:
        system = {EVENT_NAMES.get(name, name): amqp_text(value) for name, value in record.headers}
        enqueued = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    except (ValueError, OverflowError, OSError) as error:
        return Unreadable(place, f"no event of IoT Hub ({type(error).__name__}: {error})")
    return take(place, system, enqueued, record.value or b"")


def amqp_text(value: bytes | None) -> str:
    """A header's text: a string or symbol in AMQP 1.0's encoding (part 1, section 1.6), or plain UTF-8.

    Raises ValueError: it is none of these.
    """
    value = value or b""
    if value[:1] in (b"\xa1", b"\xa3") and len(value) > 1 and len(value) == 2 + value[1]:
        value = value[2:]
    elif value[:1] in (b"\xb1", b"\xb3") and len(value) > 4 and len(value) == 5 + struct.unpack(">I", value[1:5])[0]:
        value = value[5:]
    return value.decode()


def load_checkpoints(table: Path) -> dict[str, dict[int, int]]:
    """By hub and partition, the offset to go on with. Raises InputError: damaged."""
    path = table / CHECKPOINTS
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, dict[int, int]])
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as error:
        raise InputError(path, f"is damaged ({error})", "delete it: all events that are left come again") from error


def _save_checkpoints(table: Path, hub: EventHub, after: Mapping[int, int]) -> None:
    known = load_checkpoints(table)
    known[hub.key] = {**known.get(hub.key, {}), **after}
    write_durably(table / CHECKPOINTS, [msgspec.json.encode(known)])
