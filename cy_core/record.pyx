"""What is done with each record of the outbox on its way to the cloud: its checksum, its size, its bytes in a message.

    row ──► checksum                records ──► message_bytes, each ──► pack: head + records + tail

Layouts: docs/formats/outbox.md (the checksum), edge/message.proto (Envelope.records, Record).
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from cy_core.crc32c cimport update

cdef enum:
    RECORDS_TAG = 4 << 3 | 2
    SEQUENCE_TAG = 1 << 3
    PRIORITY_TAG = 2 << 3
    STREAM_TAG = 3 << 3 | 2
    BODY_TAG = 4 << 3 | 2

cdef packed struct head_t:
    uint8_t[16] outbox
    uint64_t sequence
    uint8_t priority
    uint16_t stream_bytes


def checksum(
    uint64_t sequence, bytes outbox not None, bytes stream not None, uint8_t priority, bytes manifest not None,
    bytes body not None, expires,
):
    """The CRC-32C that a record is stored with; expires is None or seconds.

    Raises TypeError, ValueError, OverflowError: that is no record.
    """
    cdef head_t head
    cdef int64_t age_s
    cdef uint32_t crc
    if len(outbox) != 16 or len(stream) > 0xFFFF:
        raise ValueError(f"an outbox id of {len(outbox)} bytes, a stream name of {len(stream)}")
    memcpy(head.outbox, PyBytes_AS_STRING(outbox), 16)
    head.sequence, head.priority, head.stream_bytes = sequence, priority, <uint16_t>len(stream)
    crc = update(0, <const uint8_t*>&head, sizeof(head_t))
    if expires is not None:
        age_s = expires
        crc = update(crc, <const uint8_t*>&age_s, sizeof(age_s))
    crc = _add(crc, stream)
    crc = _add(crc, manifest)
    return _add(crc, body)


def message_bytes(list records not None):
    """What each record takes of a message."""
    cdef list sizes = []
    for record in records:
        sizes.append(_field_bytes(_record_bytes(record.sequence, record.priority, record.stream, record.body)))
    return sizes


def pack(bytes head not None, list records not None, bytes tail not None):
    """head, the records as Envelope.records, and tail; with each body copied once."""
    cdef Py_ssize_t size = len(head) + len(tail)
    cdef bytes message
    cdef uint8_t* end
    for part in message_bytes(records):
        size += part
    message = PyBytes_FromStringAndSize(NULL, size)
    end = <uint8_t*>PyBytes_AS_STRING(message)
    end = _write(end, PyBytes_AS_STRING(head), len(head))
    for record in records:
        end = _write_record(end, record.sequence, record.priority, record.stream, record.body)
    end = _write(end, PyBytes_AS_STRING(tail), len(tail))
    assert end == <uint8_t*>PyBytes_AS_STRING(message) + size
    return message


cdef inline uint32_t _add(uint32_t crc, bytes data):
    return update(crc, <const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef Py_ssize_t _record_bytes(uint64_t sequence, uint32_t priority, str stream, bytes body) except -1:
    """Fields that are 0 or empty are left out."""
    cdef Py_ssize_t stream_bytes
    PyUnicode_AsUTF8AndSize(stream, &stream_bytes)
    return (
        (1 + _varint_bytes(sequence) if sequence else 0)
        + (1 + _varint_bytes(priority) if priority else 0)
        + (_field_bytes(stream_bytes) if stream_bytes else 0)
        + (_field_bytes(PyBytes_GET_SIZE(body)) if PyBytes_GET_SIZE(body) else 0)
    )


cdef uint8_t* _write_record(uint8_t* end, uint64_t sequence, uint32_t priority, str stream, bytes body) except NULL:
    cdef Py_ssize_t stream_bytes
    cdef const char* text = PyUnicode_AsUTF8AndSize(stream, &stream_bytes)
    end = _write_number(end, RECORDS_TAG, _record_bytes(sequence, priority, stream, body))
    if sequence:
        end = _write_number(end, SEQUENCE_TAG, sequence)
    if priority:
        end = _write_number(end, PRIORITY_TAG, priority)
    if stream_bytes:
        end = _write(_write_number(end, STREAM_TAG, stream_bytes), text, stream_bytes)
    if PyBytes_GET_SIZE(body):
        end = _write_number(end, BODY_TAG, PyBytes_GET_SIZE(body))
        end = _write(end, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    return end


cdef inline uint8_t* _write(uint8_t* end, const char* data, Py_ssize_t size) noexcept nogil:
    memcpy(end, data, size)
    return end + size


cdef inline uint8_t* _write_number(uint8_t* end, uint8_t tag, uint64_t number) noexcept nogil:
    """A tag, and a number as a varint."""
    end[0] = tag
    end += 1
    while number > 0x7F:
        end[0] = 0x80 | (number & 0x7F)
        number >>= 7
        end += 1
    end[0] = <uint8_t>number
    return end + 1


cdef inline Py_ssize_t _varint_bytes(uint64_t number) noexcept nogil:
    cdef Py_ssize_t size = 1
    while number > 0x7F:
        number >>= 7
        size += 1
    return size


cdef inline Py_ssize_t _field_bytes(Py_ssize_t length) noexcept nogil:
    """A field of this length with its tag and length prefix."""
    return 1 + _varint_bytes(length) + length
