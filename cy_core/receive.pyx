"""Frames from a raw CAN socket, many at a system call, with the kernel's own receive time.

recvmmsg() with SO_TIMESTAMPNS and SO_RXQ_OVFL: linux/can/raw.h, socket(7). A Python object for each frame would cost
ten times the system call.
"""
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport llabs
from libc.string cimport memcpy, memset

from cy_core.frames cimport Frames
from cy_core.structs cimport FD_FRAME

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <linux/can.h>
    #ifndef SO_RXQ_OVFL
    #define SO_RXQ_OVFL 40
    #endif

    #define BORDNETZ_CALL 64

    struct bordnetz_receiver {
        struct mmsghdr headers[BORDNETZ_CALL];
        struct iovec parts[BORDNETZ_CALL];
        struct canfd_frame frames[BORDNETZ_CALL];
        char controls[BORDNETZ_CALL][CMSG_SPACE(sizeof(struct timespec)) + CMSG_SPACE(sizeof(uint32_t))];
    };

    static int bordnetz_receive(int fd, struct bordnetz_receiver *r, int limit) {
        if (limit > BORDNETZ_CALL) limit = BORDNETZ_CALL;
        for (int i = 0; i < limit; i++) {
            r->parts[i].iov_base = &r->frames[i];
            r->parts[i].iov_len = sizeof r->frames[i];
            struct msghdr *m = &r->headers[i].msg_hdr;
            m->msg_name = NULL;
            m->msg_namelen = 0;
            m->msg_iov = &r->parts[i];
            m->msg_iovlen = 1;
            m->msg_control = r->controls[i];
            m->msg_controllen = sizeof r->controls[i];
            m->msg_flags = 0;
        }
        return recvmmsg(fd, r->headers, limit, MSG_DONTWAIT, NULL);
    }

    /* The kernel's receive time in ns (0: none given) and its count of dropped frames, where it says so. */
    static int64_t bordnetz_control(struct msghdr *m, uint32_t *dropped) {
        int64_t ns = 0;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
            if (c->cmsg_level != SOL_SOCKET) continue;
            if (c->cmsg_type == SO_TIMESTAMPNS) {
                struct timespec t;
                memcpy(&t, CMSG_DATA(c), sizeof t);
                ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
            } else if (c->cmsg_type == SO_RXQ_OVFL) {
                memcpy(dropped, CMSG_DATA(c), sizeof *dropped);
            }
        }
        return ns;
    }
    """
    cdef struct canfd_frame:
        uint32_t can_id
        uint8_t len
        uint8_t flags
        uint8_t data[64]
    cdef struct msghdr:
        pass
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    cdef struct bordnetz_receiver:
        mmsghdr headers[64]
        canfd_frame frames[64]
    int bordnetz_receive(int fd, bordnetz_receiver* receiver, int limit) nogil
    int64_t bordnetz_control(msghdr* message, uint32_t* dropped) nogil
    enum: BORDNETZ_CALL
    enum: CAN_MTU
    enum: CANFD_MTU


cdef enum:
    JUMP_US = 1000  # less is how well two readings of the offset agree


cdef class CanReceiver:
    """Reads one raw CAN socket (or any datagram socket that carries can_frame or canfd_frame)."""

    cdef bordnetz_receiver receiver
    cdef readonly uint32_t dropped      # by the kernel, because the socket's buffer was full; wraps at 2^32
    cdef readonly Py_ssize_t odd_sizes  # datagrams that are no CAN frame
    cdef int64_t offset_us              # to UTC, at the last call
    cdef bint called

    def receive(self, int fd, Frames frames not None, int bus, Py_ssize_t limit, int64_t utc_offset_us, int64_t now_us):
        """Append up to limit waiting frames; return how many. Never waits.

        Times are the kernel's, less utc_offset_us (so that a monotonic clock is had from a clock that may jump); less
        that of the last call where this comes nearer to now_us: the clock has jumped while the frame waited. now_us
        stands in where the kernel gives none. Raises OSError.
        """
        cdef Py_ssize_t taken = 0
        cdef int count, i
        cdef int64_t ns
        cdef canfd_frame* frame
        if not 0 <= bus <= 255:
            raise ValueError(f"bus {bus} is not in 0..255")
        cdef int64_t before_us = self.offset_us if self.called else utc_offset_us
        self.offset_us, self.called = utc_offset_us, True
        with nogil:
            while taken < limit:
                count = bordnetz_receive(fd, &self.receiver, <int>min(limit - taken, <Py_ssize_t>BORDNETZ_CALL))
                if count < 0:
                    if errno == EINTR:
                        continue
                    if errno == EAGAIN:
                        break
                    with gil:
                        raise OSError(errno, "receiving from a CAN socket failed")
                for i in range(count):
                    frame = &self.receiver.frames[i]
                    ns = bordnetz_control(&self.receiver.headers[i].msg_hdr, &self.dropped)
                    if self._append(frame, self.receiver.headers[i].msg_len, frames, bus,
                                    _time_us(ns // 1000, utc_offset_us, before_us, now_us) if ns else now_us):
                        taken += 1
                if count < BORDNETZ_CALL:
                    break
        return taken

    cdef bint _append(
        self, const canfd_frame* frame, unsigned int size, Frames frames, int bus, int64_t time_us
    ) except -1 nogil:
        cdef uint8_t flags = 0
        if size == CANFD_MTU:
            flags = frame.flags & 3 | FD_FRAME
        elif size != CAN_MTU or frame.len > 8:
            self.odd_sizes += 1
            return False
        frames.push(time_us, frame.can_id, bus, flags, frame.data, min(frame.len, <uint8_t>64))
        return True


cdef inline int64_t _time_us(int64_t utc_us, int64_t offset_us, int64_t before_us, int64_t now_us) noexcept nogil:
    cdef int64_t time_us = utc_us - offset_us, other_us = utc_us - before_us
    return other_us if llabs(other_us - now_us) < llabs(time_us - now_us) - JUMP_US else time_us
