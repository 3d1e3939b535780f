"""Blocks of coding 1 against the slow twin that is written from their page, and against bytes that are none."""

import struct

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.block import read
from cy_core.columns import Columns
from cy_core.plan import Plan
from edge import block
from edge.decoder import Decoder
from edge.errors import BlockCorrupt
from edge.manifest import DecoderManifest
from tests import strategies
from tests.golden import make
from tests.reference import block_twin as twin


def groups(columns: Columns) -> list[twin.Group]:
    """The same as the twin gives: values as unsigned bit patterns."""
    found = []
    for group in columns.groups():
        made = []
        for signal, letter, data in group.columns:
            size = struct.calcsize(letter)
            raw = bytes(data)
            values = [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]
            made.append(twin.Column(signal, len(values) == 1 and len(group.times) > 1, values))
        found.append(twin.Group(group.message, list(group.times), made))
    return found


def as_read(found: list[twin.Group]) -> list[twin.Group]:
    """A column of one row is constant or not as its writer likes: there is no telling by its values."""
    return [
        group._replace(
            columns=[column._replace(constant=column.constant and len(group.times) > 1) for column in group.columns]
        )
        for group in found
    ]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_the_twin_reads_what_the_kernel_writes_and_the_kernel_what_the_twin_writes(data: st.DataObject) -> None:
    manifest = data.draw(strategies.manifests())
    columns = Decoder(manifest).decode_batch(strategies.batch(data.draw(strategies.traffic(manifest))))
    written = block.encode_columns(columns)
    seen = twin.read(twin.unseal(written), manifest)
    assert as_read(seen) == [group for group in groups(columns) if group.columns]
    plan = Plan(manifest)
    assert groups(block.decode(written, plan)) == as_read(seen)
    assert groups(block.decode(twin.seal(twin.write(seen, manifest)), plan)) == as_read(seen)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_only_what_is_selected_is_in_the_block(data: st.DataObject) -> None:
    manifest = data.draw(strategies.manifests())
    columns = Decoder(manifest).decode_batch(strategies.batch(data.draw(strategies.traffic(manifest))))
    count = sum(len(message.signals) for message in manifest.messages)
    keep = bytes(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    first = [sum(len(m.signals) for m in manifest.messages[:number]) for number in range(len(manifest.messages))]
    expected = [
        group._replace(columns=[column for column in group.columns if keep[first[group.message] + column.signal]])
        for group in groups(columns)
    ]
    found = groups(block.decode(block.encode_columns(columns, keep), Plan(manifest)))
    assert found == [group for group in expected if group.columns]


def refuses(data: bytes, manifest: DecoderManifest) -> bool:
    try:
        block.decode(data, Plan(manifest))
    except BlockCorrupt:
        return True
    return False


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_or_cut_block_is_refused(data: st.DataObject) -> None:
    good = bytearray((make.FOLDER / "block-1.block").read_bytes())
    if data.draw(st.booleans()):
        bit = data.draw(st.integers(0, 8 * len(good) - 1))
        good[bit // 8] ^= 1 << bit % 8
    else:
        del good[data.draw(st.integers(0, len(good) - 1)) :]
    assert refuses(bytes(good), make.manifest())


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_on_any_content_kernel_and_twin_agree_whether_and_what_it_is(data: st.DataObject) -> None:
    manifest = make.manifest()
    content = bytearray(twin.unseal((make.FOLDER / "block-1.block").read_bytes()))
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))]
    content += data.draw(st.binary(max_size=3))
    try:
        expected = as_read(twin.read(bytes(content), manifest))
    except twin.Corrupt:
        with pytest.raises(ValueError):
            read(bytes(content), Plan(manifest))
    else:
        assert groups(read(bytes(content), Plan(manifest))) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no header"),
        (b"BN\x01\x02" + bytes(20), "known format"),
        (b"PK\x03\x04" + bytes(20), "known format"),
        (twin.seal_packed(zstandard.compress(b"\x00"), (64 << 20) + 1), "allowed"),
        (twin.seal_packed(zstandard.compress(b"\x00" * 1000), 1), "size that its header says"),
        (twin.seal_packed(b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 7 + b"\x00" * 4, 13), "size that its header says"),
        (twin.seal_packed(b"no zstd frame", 13), "decode"),
        (twin.seal(b"\x00")[:-1] + b"\xff", "checksum"),
        (twin.seal(b"\x00", 2), "not 2"),
        (twin.seal(b"\xff" * 9 + b"\x01"), "directory"),
    ],
)
def test_what_is_no_block_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BlockCorrupt, match=reason):
        block.decode(data, Plan(make.manifest()))
