"""A manifest is its hash: saved, loaded, and refused when a byte is not what it was."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import manifest as manifests
from edge.errors import InputError
from edge.manifest import DecoderManifest, Message, Signal, Source
from tests import strategies

MANIFEST = DecoderManifest(
    ("can0", "can1"),
    (
        Message(
            "can0",
            0x18FEF100,
            "CCVS1",
            8,
            extended=True,
            cycle_ms=100,
            signals=(
                Signal("MUX", 7, 4, big_endian=True, labels={0: "off", 1: "on – ein"}),
                Signal("SPEED", 8, 16, factor=1 / 256, unit="km/h", minimum=0, maximum=250.99),
                Signal("DEEP", 24, 64, signed=True, factor=1, offset=-0.5, selector=0, selected_by=((0, 3), (7, 7))),
            ),
        ),
    ),
    (Source("can0", "truck.dbc", "ab" * 32),),
)


# Written by the first version of the format: every later version must read it.
GOLDEN = (
    "bordnetz-manifest 1 sha256:%s\n"
    '{"buses":["can0","can1"],"messages":[{"bus":"can0","id":419361024,"name":"CCVS1","length":8,"extended":true,'
    '"signals":[{"name":"MUX","start":7,"length":4,"big_endian":true,"labels":{"0":"off","1":"on – ein"}},'
    '{"name":"SPEED","start":8,"length":16,"factor":0.00390625,"unit":"km/h","minimum":0,"maximum":250.99},'
    '{"name":"DEEP","start":24,"length":64,"signed":true,"offset":-0.5,"selector":0,"selected_by":[[0,3],[7,7]]}],'
    '"cycle_ms":100}],"sources":[{"bus":"can0","file":"truck.dbc","sha256":"' + "ab" * 32 + '"}]}\n'
)
GOLDEN_HASH = "0c567b30bac1fdcc52bb201ed7ba067f6bbc64d01a3f7f1d56b1f9793985ea7d"


def test_the_golden_manifest_reads_as_it_did() -> None:
    loaded = manifests.parse((GOLDEN % GOLDEN_HASH).encode())
    assert loaded == MANIFEST
    assert loaded.hash == GOLDEN_HASH


def test_a_manifest_saved_and_loaded_is_equal_and_keeps_its_hash(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path / "m.manifest")
    loaded = manifests.load(tmp_path / "m.manifest")
    assert loaded == MANIFEST
    assert loaded.hash == MANIFEST.hash
    loaded.save(tmp_path / "again.manifest")
    assert (tmp_path / "again.manifest").read_bytes() == (tmp_path / "m.manifest").read_bytes()


@given(strategies.manifests())
@settings(max_examples=100, deadline=None)
def test_any_manifest_survives_its_file(manifest: DecoderManifest) -> None:
    content = f"{manifests.FORMAT}{manifest.hash}\n".encode() + manifest.body + b"\n"
    loaded = manifests.parse(content)
    assert loaded == manifest
    assert loaded.hash == manifest.hash


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_is_refused(data: st.DataObject) -> None:
    content = bytearray(f"{manifests.FORMAT}{MANIFEST.hash}\n".encode() + MANIFEST.body + b"\n")
    place = data.draw(st.integers(0, len(content) - 2))  # the last newline is no part of the document
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(InputError):
        manifests.parse(bytes(content))


@given(st.integers(0, 400))
def test_a_cut_manifest_is_refused(length: int) -> None:
    content = f"{manifests.FORMAT}{MANIFEST.hash}\n".encode() + MANIFEST.body
    with pytest.raises(InputError):
        manifests.parse(content[:length])


def test_the_error_names_the_file_and_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "foreign.manifest"
    path.write_text("VERSION ''\n")
    with pytest.raises(InputError, match=r"foreign\.manifest: is not a decoder manifest of format 1; compile it"):
        manifests.load(path)
    with pytest.raises(InputError, match=r"missing\.manifest: cannot be read \(No such file"):
        manifests.load(tmp_path / "missing.manifest")


def test_loading_needs_none_of_the_big_libraries(tmp_path: Path) -> None:
    MANIFEST.save(tmp_path / "m.manifest")
    program = (
        "import sys; from edge import manifest; manifest.load(sys.argv[1]);"
        "print(sorted({'cantools', 'numpy', 'pyarrow', 'can', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m.manifest")], capture_output=True, text=True, timeout=30
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_field_says_how_long_a_payload_must_be() -> None:
    assert Signal("A", 0, 8).needed_bytes == 1
    assert Signal("A", 1, 8).needed_bytes == 2
    assert Signal("A", 7, 16, big_endian=True).needed_bytes == 2
    assert Signal("A", 6, 16, big_endian=True).needed_bytes == 3
