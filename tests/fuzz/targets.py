"""What reads bytes that others wrote, as functions of such bytes: one line of refusal may come out, and nothing else.

Checksums and hashes are made right here, so that what is behind them is reached. Where there is a second way to the
same result, both must agree.
"""

import hashlib
import socket
import tempfile
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cy_core import text_logs
from cy_core.block import read
from cy_core.candump import CandumpReader
from cy_core.columns import Columns
from cy_core.crc32c import crc32c
from cy_core.frames import Frames
from cy_core.receive import CanReceiver
from cy_core.traffic import Traffic
from edge import block, manifest, message, summary, table
from edge.campaign import Campaign, compile_campaigns
from edge.database import compile_databases
from edge.decoder import Decoder
from edge.errors import BlockCorrupt, InputError
from edge.logs import open_log
from tests.golden import make

CORPUS = Path(__file__).with_name("corpus")
REFUSED = (InputError, BlockCorrupt)
SCRATCH = tempfile.TemporaryDirectory(prefix="fuzz")
LINES = (
    CandumpReader,
    text_logs.CsvReader,
    text_logs.GvretReader,
    text_logs.BusmasterReader,
    text_logs.MicrochipReader,
    text_logs.CrtdReader,
)
BUSES = [f"can{n}" for n in range(256)]
COLD = table.Table()


def scratch(name: str, data: bytes) -> Path:
    path = Path(SCRATCH.name) / name
    path.write_bytes(data)
    return path


def decoder_of(path: Path) -> Decoder:
    return Decoder(manifest.load(path))


GOLDEN = decoder_of(make.FOLDER / "manifest-1.manifest")
PROTOCOLS = decoder_of(CORPUS / "manifest" / "protocols")


def exactly(data: bytes) -> "array[int]":
    """Of a bytes object one byte more may be read: its last 0."""
    return array("B", data)[:]  # a slice is allocated to the byte


def values(columns: Columns) -> list[Any]:
    """A column of one row is constant or not as its writer likes."""
    return [
        (g.message, bytes(g.times), [(signal, bytes(column)) for signal, _, column in g.columns])
        for g in columns.groups()
    ]


# -- frames --------------------------------------------------------------------------------------------------


def lines(data: bytes) -> None:
    """The first byte chooses the form and where the text is cut: in pieces it is the same as whole."""
    form, text = LINES[data[0] % len(LINES)], exactly(data[1:])
    whole, pieces = (form(), Frames()), (form(), Frames())
    whole[0].parse(text, whole[1], final=True)
    done = pieces[0].parse(text[: data[0] % 61], pieces[1], limit=3)
    pieces[0].parse(text[done:], pieces[1], final=True)
    assert list(whole[1]) == list(pieces[1])
    assert whole[0].buses == pieces[0].buses
    assert whole[0].bad_lines == pieces[0].bad_lines


def log(data: bytes) -> None:
    """Files, packed or not, told by how they begin."""
    suffix = ".log.gz" if data[:2] == b"\x1f\x8b" else ".txt.zst" if data[:4] == b"\x28\xb5\x2f\xfd" else ".log"
    reader, frames = open_log(scratch(f"a{suffix}", data)), Frames()
    try:
        while reader.read(frames, 1000):
            frames.clear()
        reader.problems()
    finally:
        reader.close()


def frames(data: bytes) -> None:
    """A piece from another process, decoded, and as a block and back again."""
    count = data[0]
    taken = Frames()
    try:
        taken.extend(exactly(data[1 : 1 + 24 * count]), exactly(data[1 + 24 * count :]))
    except ValueError:
        return
    GOLDEN.decode_batch(taken)
    try:
        packed = block.encode_frames(taken, BUSES, COLD)
    except ValueError:  # times that no block can hold
        return
    again = Frames()
    block.decode_frames(packed, again)
    assert list(again) == list(taken)


def receive(data: bytes) -> None:
    """Datagrams of any size on what was taken for a CAN socket: a length, then so many bytes."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    taken, at = Frames(), 0
    with here, there:
        for _ in range(100):  # as many as surely fit in the socket's buffer
            if at == len(data):
                break
            here.send(data[at + 1 : at + 1 + data[at]])
            at = min(len(data), at + 1 + data[at])
        CanReceiver().receive(there.fileno(), taken, 0, 1000, 0, 0)
    GOLDEN.decode_batch(taken)


def transport(data: bytes) -> None:
    """Bytes as frames: bus, identifier, time step, length, payload; put together and decoded, whole and cut in two."""
    sent, at, time_us = [], 0, 0
    while at + 8 <= len(data):
        length = data[at + 7] % 65
        can_id = int.from_bytes(data[at + 1 : at + 5], "little")
        time_us += int.from_bytes(data[at + 5 : at + 7], "little") * 100
        payload = data[at + 8 : at + 8 + length]
        sent.append((time_us, data[at] % 8, can_id, payload, 4 if len(payload) > 8 else 0))
        at += 8 + length
    whole, messages = batch(sent), Frames()
    assembler = PROTOCOLS.assembler()
    assembler.assemble(whole, messages)
    columns = PROTOCOLS.decode_batch(whole, None, messages)
    assert columns.frames == len(whole)
    assert columns.unknown_frames >= 0
    list(columns.groups())
    halves, assembler = Frames(), PROTOCOLS.assembler()
    assembler.assemble(batch(sent[: len(sent) // 2]), halves)
    assembler.assemble(batch(sent[len(sent) // 2 :]), halves)
    assert list(halves) == list(messages)


def batch(sent: list[tuple[int, int, int, bytes, int]]) -> Frames:
    made = Frames()
    for time_us, bus, can_id, payload, flags in sent:
        made.append(time_us, bus, can_id, payload, flags=flags)
    return made


# -- blocks --------------------------------------------------------------------------------------------------


def sealed(form: tuple[int, int], rest: bytes) -> bytes:
    return block.HEAD.pack(block.MAGIC, *form, crc32c(rest)) + rest


def block_frames(data: bytes) -> None:
    """The inside of a block of frames, in either version: what comes out goes in again."""
    refused = []
    for form in (block.FRAMES, block.MIXED_FRAMES):
        taken = Frames()
        try:
            buses = block.decode_frames(sealed(form, COLD.name + data), taken)
        except BlockCorrupt as error:
            refused.append(error)
            continue
        again = Frames()
        if len(taken):
            mixed = form == block.MIXED_FRAMES
            block.decode_frames(block.encode_frames(taken, buses, COLD, mixed=mixed), again)
        assert list(again) == list(taken)
    if len(refused) == 2:
        raise refused[0]


def block_signals(data: bytes) -> None:
    columns = block.decode(sealed(block.SIGNALS, COLD.name + data), GOLDEN.plan)
    list(columns.groups())


def block_columns(data: bytes) -> None:
    """The inside of a block of version 1, behind zstd."""
    try:
        columns = read(exactly(data), GOLDEN.plan)
    except ValueError:
        return
    again = block.decode(block.encode_columns(columns), GOLDEN.plan)
    assert values(again) == [group for group in values(columns) if group[2]]


def summaries(data: bytes) -> None:
    """A block of summaries: its form, and the block inside, with both checksums made right."""
    size = int.from_bytes(data[8:10], "little")
    inner = data[10 + size :]
    rest = data[8 : 10 + size] + inner[:4] + crc32c(inner[8:]).to_bytes(4, "little") + inner[8:]
    _, columns = summary.Reader(GOLDEN.manifest).read(sealed(summary.FORM, rest))
    list(columns.groups())


def model_table(data: bytes) -> None:
    """A trained table as it is behind zstd, then used."""
    try:
        made = table._parse(data)
    except (ValueError, TypeError, KeyError, OverflowError, table.struct.error):  # what load() turns into a line
        return
    frames, again = make.frames(), Frames()
    packed = block.encode_frames(frames, ["can0", "can1"], made)
    block.decode_frames(packed, again, block.Tables([made]))
    assert list(again) == list(frames)


def envelope(data: bytes) -> None:
    for record in message.unpack(data).records:
        message.Block.decode(record.body)


# -- what a person or the cloud writes -----------------------------------------------------------------------


def database(data: bytes) -> None:
    marks = ((b"<NetworkDef", ".kcd"), (b"AUTOSAR", ".arxml"), (b"FormatVersion", ".sym"))
    suffix = next((suffix for mark, suffix in marks if mark in data), ".dbc")
    made, _ = compile_databases({"can0": [scratch(f"a{suffix}", data)]})
    Decoder(made)
    assert manifest.parse(manifest.FORMAT.encode() + made.hash.encode() + b"\n" + made.body).hash == made.hash


def manifest_file(data: bytes) -> None:
    """The hash made right, so that the document is read; then frames are decoded by it."""
    manifest_body = data.partition(b"\n")[2].rstrip(b"\n")
    head = manifest.FORMAT + hashlib.sha256(manifest_body).hexdigest() + "\n"
    Decoder(manifest.parse(head.encode() + manifest_body)).decode_batch(make.frames())


def campaign(data: bytes) -> None:
    """Campaigns as the twin has them; those that can run do, over some frames."""
    try:
        wanted = msgspec.json.decode(data, type=dict[str, Campaign])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    made, refused = compile_campaigns(wanted, GOLDEN.manifest)
    assert len(made) + len(refused) == len(wanted)
    assert not any("\n" in reason for reason in refused.values())
    frames, traffic = make.frames(), Traffic(GOLDEN.plan)
    traffic.note(frames)
    for selection in made:
        if selection.program:
            selection.program.condition(GOLDEN.plan).run(frames, traffic)


def planted_read(data: bytes) -> None:
    from tests.fuzz import planted

    planted.read_behind_the_end(exactly(data))


def planted_shift(data: bytes) -> None:
    from tests.fuzz import planted

    planted.shift_too_far(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "block_columns": block_columns,
    "block_frames": block_frames,
    "block_signals": block_signals,
    "campaign": campaign,
    "database": database,
    "envelope": envelope,
    "frames": frames,
    "lines": lines,
    "log": log,
    "manifest": manifest_file,
    "receive": receive,
    "summaries": summaries,
    "table": model_table,
    "transport": transport,
}
PLANTED: dict[str, tuple[Callable[[bytes], None], str]] = {  # and what the report must say
    "planted_read": (planted_read, "AddressSanitizer: heap-buffer-overflow"),
    "planted_shift": (planted_shift, "runtime error: shift exponent 243"),
}


def run(name: str, data: bytes) -> bool:
    """Whether it was read; False: refused in one line. Raises whatever else comes out."""
    target = TARGETS[name] if name in TARGETS else PLANTED[name][0]
    try:
        if data:
            target(data)
    except REFUSED as error:
        if "\n" in str(error):
            raise AssertionError("refused in several lines") from error
        return False
    return True
