"""Decode frames by a decoder manifest: one at a time to a dict, or batches to columns.

>>> decoder = Decoder(manifest)
>>> decoder.decode("can0", 0x0AA, bytes.fromhex("1A6F1A6F1A6F1A6F"))
{'WHEEL_SPEEDS.WHEEL_SPEED_FR': 0.0, ...}

A Decoder holds scratch memory: use one in each thread.
"""

from cy_core.assemble import Assembler
from cy_core.columns import Columns, Group
from cy_core.decode import BatchDecoder
from cy_core.decode_frame import FrameDecoder
from cy_core.frames import Frames
from cy_core.plan import Plan
from edge.errors import InputError
from edge.manifest import DecoderManifest

__all__ = ["Assembler", "Columns", "Decoder", "Frames", "Group"]


class Decoder:
    """Raises InputError where the manifest describes a field that no frame could hold."""

    def __init__(self, manifest: DecoderManifest) -> None:
        self.manifest = manifest
        try:
            self.plan = Plan(manifest)
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise InputError("decoder manifest", str(error), "correct the database and compile it again") from error
        self.decode = FrameDecoder(self.plan).decode
        self.decode_batch = BatchDecoder(self.plan).decode_batch

    def assembler(self) -> Assembler:
        """For one stream of frames: messages that come in several frames, for decode_batch(…, assembled=…)."""
        return Assembler(self.plan)
