"""The C structs that pass from stage to stage; docs/formats/frame.md gives frame_t byte by byte."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    EXTENDED_ID = 0x80000000    # bits of can_id, as in <linux/can.h>
    REMOTE_FRAME = 0x40000000
    ERROR_FRAME = 0x20000000
    ID_MASK = 0x1FFFFFFF

    FD_BIT_RATE_SWITCH = 1      # bits of frame_t.flags, as in struct canfd_frame
    FD_ERROR_STATE = 2
    FD_FRAME = 4

    PAYLOAD_SLOT = 64           # bytes a long payload takes in the payload buffer


cdef packed struct frame_t:
    int64_t time_us
    uint32_t can_id
    uint8_t bus
    uint8_t length              # of the payload, 0 to 64
    uint8_t flags
    uint8_t reserved            # of a message put together from segments: its length above 8 bits; 0 in frames
    uint64_t data               # 8 payload bytes, zero behind length; over 8 bytes: the payload's slot number


cdef inline uint32_t payload_length(const frame_t* record) noexcept nogil:
    return record.length | <uint32_t>record.reserved << 8
