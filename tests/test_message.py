"""Messages and blocks survive the way through protobuf, and foreign bytes are data."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cy_core.record import message_bytes
from edge import message_pb2
from edge.errors import BlockCorrupt
from edge.message import (
    Block,
    Clock,
    Counters,
    Coverage,
    Envelope,
    Eviction,
    Quality,
    Record,
    fit,
    pack,
    unpack,
)

COUNTS = st.integers(0, 2**64 - 1)
NAMES = st.text(max_size=300)
RECORDS = st.lists(st.builds(Record, COUNTS, st.integers(0, 255), NAMES, st.binary(max_size=400)), max_size=8)
EVICTIONS = st.lists(
    st.builds(
        Eviction,
        COUNTS,
        COUNTS,
        st.integers(0, 2**32 - 1),
        NAMES,
        st.sampled_from(["quota", "corrupt"]),
        st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=3,
)
OUTBOX, MANIFEST = bytes(range(16)), bytes(range(32))
GOLDEN = bytes.fromhex(
    "0a0363617212100000000000000000000000000000000f1a20"
    + "aa" * 32
    + "2210080710051a05647269766522030a01782a1d080110031803220564726976652a0571756f74613080d099b3e6cc9903"
)


@given(NAMES, RECORDS, EVICTIONS)
def test_what_was_packed_comes_back_as_it_was(vehicle, records, evictions):
    packed = pack(vehicle, OUTBOX, MANIFEST, records, evictions)
    assert unpack(packed) == Envelope(vehicle, OUTBOX, MANIFEST, records, evictions)


@given(NAMES, RECORDS, EVICTIONS)
def test_a_message_is_byte_for_byte_what_protobuf_makes_of_it(vehicle, records, evictions):
    fields = [
        [kind(**{name: getattr(one, name) for name in one.__struct_fields__}) for one in some]
        for kind, some in ((message_pb2.Record, records), (message_pb2.Eviction, evictions))
    ]
    twin = message_pb2.Envelope(
        vehicle_id=vehicle, outbox_id=OUTBOX, manifest=MANIFEST, records=fields[0], evictions=fields[1]
    )
    assert pack(vehicle, OUTBOX, MANIFEST, records, evictions) == twin.SerializeToString(deterministic=True)


@given(NAMES, RECORDS, EVICTIONS, st.integers(0, 3000))
def test_fit_takes_as_many_as_the_limit_holds_and_not_one_more(vehicle, records, evictions, limit):
    count, told = fit(vehicle, message_bytes(records), evictions, limit)
    assert (count, told) == (0, 0) or len(pack(vehicle, OUTBOX, MANIFEST, records[:count], evictions[:told])) <= limit
    if told < len(evictions):
        assert len(pack(vehicle, OUTBOX, MANIFEST, [], evictions[: told + 1])) > limit
    if count < len(records):
        assert len(pack(vehicle, OUTBOX, MANIFEST, records[: count + 1], evictions[:told])) > limit


@given(
    st.binary(max_size=100),
    st.builds(Clock, st.binary(max_size=16), st.integers(-(2**63), 2**63 - 1), st.sampled_from(Quality)),
    st.builds(Coverage, NAMES, COUNTS, COUNTS, COUNTS),
    st.builds(Counters, *[COUNTS] * 7),
)
def test_a_block_comes_back_as_it_was(data, clock, coverage, counters):
    block = Block(data, clock, coverage, counters)
    assert Block.decode(block.encode()) == block


def test_a_clock_quality_of_a_later_version_is_unknown():
    encoded = Block(b"", Clock(quality=Quality.SYNCHRONISED)).encode()
    assert Block.decode(encoded.replace(b"\x18\x03", b"\x18\x09")).clock.quality is Quality.UNKNOWN


def test_a_number_that_does_not_fit_its_field_is_a_bug_of_the_caller():
    with pytest.raises(ValueError):
        Block(b"", Clock(utc_offset_us=2**63)).encode()
    with pytest.raises(ValueError):
        Block(b"", coverage=Coverage(first=-1)).encode()


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_foreign_bytes_are_a_message_or_corrupt_and_never_anything_else(body):
    for decode in (unpack, Block.decode):
        try:
            decode(body)
        except BlockCorrupt:
            continue


def test_a_message_without_a_proper_outbox_or_manifest_is_corrupt():
    record = Record(1, 2, "s", b"")
    for packed in (pack("v", b"short", MANIFEST, [record]), pack("v", OUTBOX, b"", [record]), b""):
        with pytest.raises(BlockCorrupt):
            unpack(packed)
    assert unpack(pack("v", OUTBOX, b"", [])).manifest == b""


def test_a_message_of_this_version_stays_readable():
    envelope = unpack(GOLDEN)
    assert (envelope.vehicle_id, envelope.outbox_id[-1], envelope.manifest) == ("car", 15, b"\xaa" * 32)
    assert envelope.records == [Record(7, 5, "drive", Block(b"x").encode()[:3])]
    assert envelope.evictions == [Eviction(1, 3, 3, "drive", "quota", 900719925474304)]
    assert Block.decode(envelope.records[0].body) == Block(b"x")
    assert pack("car", envelope.outbox_id, envelope.manifest, envelope.records, envelope.evictions) == GOLDEN
