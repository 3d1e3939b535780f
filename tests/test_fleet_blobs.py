"""Blobs from Azurite, Microsoft's own storage emulator: `make node` installs it; AZURITE names another azurite-blob."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge.cli import main
from edge.errors import InputError
from fleet.blobs import place
from fleet.decode import decode
from fleet.generate import write

INSTALLED = Path(__file__).parent / "node/node_modules/.bin/azurite-blob"
AZURITE = os.environ.get("AZURITE") or (str(INSTALLED) if INSTALLED.exists() else shutil.which("azurite-blob"))
ACCOUNT = "bordnetz"
KEY = "Ym9yZG5ldHo="  # of the emulator that the test starts, and of nothing else


@pytest.mark.parametrize("name", ["../out.json", "/etc/out.json", "a/../../out.json", "a\\..\\out.json", "a\0b"])
def test_a_blob_whose_name_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is a blob whose name leads out of the folder"):
        place(tmp_path, name)
    assert place(tmp_path, "hub/00/07.json") == tmp_path / "hub/00/07.json"


@pytest.fixture(scope="module")
def connection(tmp_path_factory: Any) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("azurite")
    options = [
        "--blobPort",
        str(port),
        "--location",
        str(folder),
        "--silent",
        "--disableTelemetry",
        "--skipApiVersionCheck",
    ]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    emulator = subprocess.Popen([str(AZURITE), *options], env=environment)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert emulator.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
        url = f"http://127.0.0.1:{port}/{ACCOUNT}"
        yield f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={url};"
    finally:
        emulator.terminate()
        emulator.wait(timeout=30)


@pytest.mark.process
@pytest.mark.skipif(not AZURITE, reason="Azurite is not installed: make node")
def test_what_is_new_in_a_container_is_brought_once_and_makes_a_table(connection: str, tmp_path: Path) -> None:
    from azure.storage.blob import ContainerClient

    write(tmp_path / "made", vehicles=1, hours=0.2, seed=1)
    files = sorted(path for path in (tmp_path / "made/messages").rglob("*.json"))

    def run(*arguments: object) -> tuple[int, str]:
        command = ["fleet", "fetch", *map(str, arguments), "--connection-string", connection]
        result = CliRunner().invoke(main, command)
        return result.exit_code, result.output

    with ContainerClient.from_connection_string(connection, "telemetry") as container:
        container.create_container()
        for path in files[:-1]:
            container.upload_blob(str(path.relative_to(tmp_path / "made/messages")), path.read_bytes())
        got = tmp_path / "got"
        size = sum(path.stat().st_size for path in files[:-1])
        assert run("telemetry", "-o", got) == (0, f"{got}: {len(files) - 1} blobs, {size:,} bytes; 0 were there\n")
        container.upload_blob(str(files[-1].relative_to(tmp_path / "made/messages")), files[-1].read_bytes())
        code, text = run("telemetry", "-o", got, "--prefix", "hub/")
        assert (code, f" 1 blobs, {files[-1].stat().st_size:,} bytes; {len(files) - 1} were there" in text) == (0, True)
        audit = decode([got], tmp_path / "made/manifests", tmp_path / "table")
        assert audit.ok, str(audit)
    code, text = run("nothing", "-o", got)
    assert code == 2
    assert "nothing: refused: The specified container does not exist." in text
