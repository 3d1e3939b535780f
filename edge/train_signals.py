"""Recordings and campaigns to the model table for blocks of signals: the probabilities that their values leave behind.

    recordings ──► edge/line.py, as in the vehicle ──► what each campaign keeps ──► the codec, learning ──► contexts

It is as good as it is like what the vehicle sends: the same campaigns, bounds and tolerance, blocks about as long.
"""

from array import array
from collections.abc import Callable, Sequence

from cy_core.codec.signals import SignalCodec
from cy_core.columns import Columns
from cy_core.frames import Frames
from edge.campaign import Selection
from edge.decoder import Decoder
from edge.line import Batch, Line
from edge.manifest import DecoderManifest
from edge.message import Clock, Coverage
from edge.pack import cut
from edge.table import Table
from edge.train import LEARNING_SECONDS

MOST_STEP = 1 << 31


def train_signals(
    selections: Sequence[Selection],
    manifest: DecoderManifest,
    recordings: Sequence[Frames],
    tick_us: int = 1,
    tolerance_us: int = 0,
    say: Callable[[float], None] = lambda part: None,
) -> Table:
    """The table for what these campaigns keep of such recordings, whose buses are numbered as in the manifest.

    tick_us, tolerance_us: as blocks will be encoded (edge.block.encode).
    """
    decoder = Decoder(manifest)
    codec = SignalCodec(decoder.plan, learning=True)
    steps = {selection.stream: _steps(selection) for selection in selections}
    keep = {selection.stream: selection.keep for selection in selections}

    def learn(stream: str, before: Columns, after: Columns) -> None:
        codec.encode(after, keep[stream], steps[stream], tick_us, tolerance_us)

    runs = [(seconds, frames) for seconds in LEARNING_SECONDS for frames in recordings]
    for done, (seconds, frames) in enumerate(runs):
        line = Line(decoder, on_columns=learn)
        line.select(selections, 0)
        for start, end in cut(frames, seconds):
            coverage = Coverage("training", start, end)
            line.take(Batch(frames.slice(start, end), coverage, Clock(), last=end == len(frames)))
        say((done + 1) / len(runs))
    return Table((), codec.models.dump())


def _steps(selection: Selection) -> "array[int] | None":
    """Of each signal: what its reduction leaves are multiples of 2n + 1 raw units, n the whole part of its bound."""
    if selection.rules is None:
        return None
    bounds = [rule[1] if rule[0] == "every" else 0.0 for rule in selection.rules]
    return array("I", [2 * int(bound) + 1 if bound < MOST_STEP // 2 else 1 for bound in bounds])
