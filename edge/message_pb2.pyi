from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("vehicle_id", "outbox_id", "manifest", "records", "evictions")
    VEHICLE_ID_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    vehicle_id: str
    outbox_id: bytes
    manifest: bytes
    records: _containers.RepeatedCompositeFieldContainer[Record]
    evictions: _containers.RepeatedCompositeFieldContainer[Eviction]
    def __init__(self, vehicle_id: _Optional[str] = ..., outbox_id: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., evictions: _Optional[_Iterable[_Union[Eviction, _Mapping]]] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("sequence", "priority", "stream", "body")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    priority: int
    stream: str
    body: bytes
    def __init__(self, sequence: _Optional[int] = ..., priority: _Optional[int] = ..., stream: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class Eviction(_message.Message):
    __slots__ = ("first_sequence", "last_sequence", "count", "stream", "reason", "time_us")
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    first_sequence: int
    last_sequence: int
    count: int
    stream: str
    reason: str
    time_us: int
    def __init__(self, first_sequence: _Optional[int] = ..., last_sequence: _Optional[int] = ..., count: _Optional[int] = ..., stream: _Optional[str] = ..., reason: _Optional[str] = ..., time_us: _Optional[int] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("data", "clock", "coverage", "counters")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    clock: Clock
    coverage: Coverage
    counters: Counters
    def __init__(self, data: _Optional[bytes] = ..., clock: _Optional[_Union[Clock, _Mapping]] = ..., coverage: _Optional[_Union[Coverage, _Mapping]] = ..., counters: _Optional[_Union[Counters, _Mapping]] = ...) -> None: ...

class Clock(_message.Message):
    __slots__ = ("boot_id", "utc_offset_us", "quality")
    class Quality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Clock.Quality]
        RECORDED: _ClassVar[Clock.Quality]
        SYSTEM: _ClassVar[Clock.Quality]
        SYNCHRONISED: _ClassVar[Clock.Quality]
    UNKNOWN: Clock.Quality
    RECORDED: Clock.Quality
    SYSTEM: Clock.Quality
    SYNCHRONISED: Clock.Quality
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    UTC_OFFSET_US_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    boot_id: bytes
    utc_offset_us: int
    quality: Clock.Quality
    def __init__(self, boot_id: _Optional[bytes] = ..., utc_offset_us: _Optional[int] = ..., quality: _Optional[_Union[Clock.Quality, str]] = ...) -> None: ...

class Coverage(_message.Message):
    __slots__ = ("source", "first", "end", "missing")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    source: str
    first: int
    end: int
    missing: int
    def __init__(self, source: _Optional[str] = ..., first: _Optional[int] = ..., end: _Optional[int] = ..., missing: _Optional[int] = ...) -> None: ...

class Counters(_message.Message):
    __slots__ = ("samples", "unknown_frames", "short_frames", "remote_frames", "error_frames", "unparsed_lines", "overflowed_frames")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FRAMES_FIELD_NUMBER: _ClassVar[int]
    SHORT_FRAMES_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FRAMES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FRAMES_FIELD_NUMBER: _ClassVar[int]
    UNPARSED_LINES_FIELD_NUMBER: _ClassVar[int]
    OVERFLOWED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    samples: int
    unknown_frames: int
    short_frames: int
    remote_frames: int
    error_frames: int
    unparsed_lines: int
    overflowed_frames: int
    def __init__(self, samples: _Optional[int] = ..., unknown_frames: _Optional[int] = ..., short_frames: _Optional[int] = ..., remote_frames: _Optional[int] = ..., error_frames: _Optional[int] = ..., unparsed_lines: _Optional[int] = ..., overflowed_frames: _Optional[int] = ...) -> None: ...
