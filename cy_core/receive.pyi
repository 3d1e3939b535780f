from cy_core.frames import Frames

class CanReceiver:
    dropped: int
    odd_sizes: int
    def receive(self, fd: int, frames: Frames, bus: int, limit: int, utc_offset_us: int, now_us: int) -> int: ...
