"""Blobs of a container to a folder, each once; the only file that imports azure-storage-blob.

What `fetch` brings (messages as routing or capture stored them, decoder manifests) is then read like any folder. A
file appears whole; one that is there in the blob's size and version is not brought again.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from edge.durable import write_durably
from edge.errors import CloudUnreachable, InputError

VERSIONS = ".versions"  # below the folder: for each file, the version (ETag) of the blob that it is a copy of


class Fetched(NamedTuple):
    new: int
    known: int
    bytes: int


def fetch(
    container: str,
    folder: Path,
    prefix: str = "",
    connection: str = "",
    progress: Callable[[float], None] = lambda p: None,
) -> Fetched:
    """Bring the blobs whose name begins with prefix.

    container: its URL (with a SAS token), or its name if there is a connection string. Raises InputError: no such
    container, a blob's name leads out of the folder, the folder cannot be written; CloudUnreachable.
    """
    try:
        from azure.storage.blob import ContainerClient
    except ImportError as error:
        way_out = "pip install 'bordnetz[blob]'"
        raise InputError(container, "is in the cloud, and azure-storage-blob is not installed", way_out) from error
    with _plain_errors(container, folder):
        if connection:
            client = ContainerClient.from_connection_string(connection, container)
        else:
            client = ContainerClient.from_container_url(container)
        with client:
            blobs = sorted(client.list_blobs(name_starts_with=prefix or None), key=lambda blob: str(blob.name))
            brought = Fetched(0, 0, 0)
            for done, blob in enumerate(blobs, start=1):
                size = _bring(client, blob, folder)
                brought = Fetched(
                    brought.new + (size is not None), brought.known + (size is None), brought.bytes + (size or 0)
                )
                progress(done / len(blobs))
            return brought


def _bring(client: Any, blob: Any, folder: Path) -> int | None:
    """The size, or None if the file is there."""
    path = place(folder, blob.name)
    version = folder / VERSIONS / hashlib.sha256(blob.name.encode()).hexdigest()
    if path.is_file() and version.is_file() and version.read_text() == blob.etag:
        return None
    content = client.download_blob(blob.name, etag=blob.etag, match_condition=_if_unchanged()).readall()
    write_durably(path, [content])
    write_durably(version, [blob.etag.encode()])
    return len(content)


def place(folder: Path, blob: str) -> Path:
    """Where a blob of this name goes. Raises InputError: not into the folder."""
    name = PurePosixPath(blob)
    if name.is_absolute() or ".." in name.parts or "\0" in blob or "\\" in blob:
        raise InputError(blob, "is a blob whose name leads out of the folder", "give a --prefix without it")
    return folder / name


def _if_unchanged() -> Any:
    from azure.core import MatchConditions

    return MatchConditions.IfNotModified


@contextmanager
def _plain_errors(container: str, folder: Path) -> Iterator[None]:
    from azure.core.exceptions import AzureError, HttpResponseError, ResourceModifiedError, ServiceRequestError

    try:
        yield
    except ResourceModifiedError as error:
        raise CloudUnreachable(f"{container}: a blob changed while it was read; run it again") from error
    except HttpResponseError as error:
        reason = (error.message or str(error)).splitlines()[0]
        raise InputError(
            _without_token(container), f"refused: {reason}", "look at its name and the credentials"
        ) from error
    except ServiceRequestError as error:
        raise CloudUnreachable(f"{_without_token(container)}: does not answer; try again later") from error
    except (AzureError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(_without_token(container), reason, "give a container's URL, or a connection string") from error
    except OSError as error:
        raise InputError(folder, f"cannot be written ({error.strerror})", "choose another folder") from error


def _without_token(container: str) -> str:
    return container.partition("?")[0]
