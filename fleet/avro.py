"""Messages in Avro files, in the two forms that Azure writes; the only file that imports fastavro.

IoT Hub's routing to storage    EnqueuedTimeUtc (ISO 8601), Properties, SystemProperties (connectionDeviceId …), Body
Event Hubs capture              SequenceNumber, Offset, EnqueuedTimeUtc (US date), SystemProperties
                                (iothub-connection-device-id …), Properties, Body
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge.errors import InputError
from fleet.messages import EVENT_NAMES, Found, Place, Unreadable, take, time_of

CAPTURE_TIME = "%m/%d/%Y %I:%M:%S %p"


def read(path: Path) -> Iterator[Found]:
    """Every record; a file that is cut gives what comes before the cut. Raises InputError: fastavro is missing."""
    try:
        import fastavro
    except ImportError as error:
        raise InputError(
            path, "is an Avro file, and fastavro is not installed", "pip install 'bordnetz[fleet]'"
        ) from error
    number = 0
    with path.open("rb") as file:
        try:
            for record in fastavro.reader(file):
                number += 1
                yield _take(Place(path, number), record)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:  # bz2 calls damage an OSError, too
                raise
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            yield Unreadable(Place(path, 0), f"is no whole Avro file, read up to record {number} ({what})")


def _take(place: Place, record: Any) -> Found:
    try:
        system = {EVENT_NAMES.get(name, name): _text(value) for name, value in record["SystemProperties"].items()}
        return take(place, system, _time(record["EnqueuedTimeUtc"]), _body(record))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Unreadable(place, f"no message of IoT Hub or Event Hubs ({type(error).__name__}: {error})")


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _time(text: str) -> datetime:
    if "/" in text:
        return datetime.strptime(text, CAPTURE_TIME).replace(tzinfo=UTC)
    return time_of(text)


def _body(record: Mapping[str, Any]) -> bytes:
    body = record["Body"]
    if body is not None and not isinstance(body, bytes):
        raise TypeError(f"its body is {type(body).__name__}, not bytes")
    return body or b""
