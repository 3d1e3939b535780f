"""Recordings and campaigns to the model table for blocks of signals: the probabilities that their values leave behind.

    recordings ──► edge/line.py, as in the vehicle ──► what each campaign keeps ──► the codec, learning ──► contexts

It is as good as it is like what the vehicle sends: the same campaigns, bounds and tolerance, blocks about as long.
"""

from collections.abc import Callable, Sequence

from cy_core.codec.signals import SignalCodec
from cy_core.columns import Columns
from cy_core.frames import Frames
from edge.campaign import Selection
from edge.decoder import Decoder
from edge.line import Line
from edge.manifest import DecoderManifest
from edge.message import Clock, Coverage
from edge.pack import cut
from edge.stream import Batch
from edge.table import Table
from edge.train import LEARNING_SECONDS


def train_signals(
    selections: Sequence[Selection],
    manifest: DecoderManifest,
    recordings: Sequence[Frames],
    say: Callable[[float], None] = lambda part: None,
) -> Table:
    """The table for what these campaigns keep of such recordings, whose buses are numbered as in the manifest."""
    decoder = Decoder(manifest)
    codec = SignalCodec(decoder.plan, learning=True)
    running = {selection.stream: selection for selection in selections}

    def learn(stream: str, before: Columns, after: Columns) -> None:
        selection, campaign = running[stream], running[stream].campaign
        tolerance_us = round(campaign.time_tolerance_s * 1e6)
        codec.encode(after, selection.keep, selection.steps, campaign.tick_us, tolerance_us, True)

    runs = [(seconds, frames) for seconds in LEARNING_SECONDS for frames in recordings]
    for done, (seconds, frames) in enumerate(runs):
        line = Line(decoder, on_columns=learn)
        line.select(selections, 0)
        for start, end in cut(frames, seconds):
            coverage = Coverage("training", start, end)
            line.take(Batch(frames.slice(start, end), coverage, Clock(), last=end == len(frames)))
        say((done + 1) / len(runs))
    return Table((), codec.models.dump())
