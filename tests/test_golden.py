"""What earlier versions stored is read as it was then: the files of tests/golden never change."""

import json
from typing import Any

from cy_core.frames import Frames
from cy_core.plan import Plan
from edge import block, manifest
from edge.message import unpack
from edge.source.stream import PIECE, RECORD_BYTES
from tests.golden import make


def stored(name: str) -> bytes:
    return (make.FOLDER / name).read_bytes()


def expected(name: str) -> Any:
    return json.loads(stored(name))


def test_a_manifest_of_version_1():
    assert make.manifest_values(manifest.parse(stored("manifest-1.manifest"))) == expected("manifest-1.json")


def test_frame_records_of_version_1():
    piece = stored("frame-1.piece")
    count, slots = PIECE.unpack_from(piece)
    middle = PIECE.size + RECORD_BYTES * count
    frames = Frames()
    frames.extend(piece[PIECE.size : middle], piece[middle:])
    assert len(piece) == middle + 64 * slots
    assert make.frame_values(frames) == expected("frame-1.json")
    assert b"".join(frames.to_bytes()) == piece[PIECE.size :]


def test_a_block_of_version_1():
    found = block.decode(stored("block-1.block"), Plan(make.manifest()))
    assert make.block_values(found) == expected("block-1.json")


def test_a_block_of_summaries():
    assert make.summary_values(stored("summaries-2.block")) == expected("summaries-2.json")


def test_a_message_of_version_1():
    assert make.message_values(unpack(stored("message-1.message"))) == expected("message-1.json")
