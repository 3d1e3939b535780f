"""Campaigns: what to collect, and how urgently. So far: which signals, and with which priority.

    {"drive": {"signals": {"WHEEL_SPEEDS.*": {}, "can1.*.Temperature*": {}}, "priority": 5}}

A campaign is compiled against the manifest to one byte for each signal: what no campaign names never leaves the
vehicle.
"""

import difflib
import fnmatch
import re
from collections.abc import Mapping

import msgspec

from edge.errors import InputError
from edge.manifest import DecoderManifest


class SignalRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a signal is reduced. There is nothing to say yet: every sample is kept, exactly."""


class Campaign(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """signals: globs over `Message.Signal` or `bus.Message.Signal`; priority: 0 is sent first."""

    signals: dict[str, SignalRule]
    priority: int = 5


class Selection(msgspec.Struct, frozen=True):
    """A campaign, compiled: keep has one byte for each signal of the manifest, in its order."""

    stream: str
    priority: int
    keep: bytes


def compile_campaign(name: str, campaign: Campaign, manifest: DecoderManifest) -> Selection:
    """Raises InputError: a name that cannot be a stream, a priority out of range, or a glob that matches nothing."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise InputError(f"campaign {name!r}", "is no usable name", "up to 64 letters, digits, _ and -")
    if not 0 <= campaign.priority <= 9:
        raise InputError(f"campaign {name}: priority", f"{campaign.priority} is out of range", "0 (first) to 9")
    if not campaign.signals:
        raise InputError(f"campaign {name}: signals", "selects nothing", 'for example {"*": {}}')
    keep = bytearray(sum(len(message.signals) for message in manifest.messages))
    for glob in campaign.signals:
        matches = _matches(glob, manifest)
        if not matches:
            raise InputError(
                f"campaign {name}: signals.{glob}",
                "matches no signal of the manifest",
                _closest(glob, manifest),
            )
        for place in matches:
            keep[place] = 1
    return Selection(name, campaign.priority, bytes(keep))


def compile_campaigns(
    campaigns: Mapping[str, Campaign], manifest: DecoderManifest
) -> tuple[list[Selection], dict[str, str]]:
    """The campaigns that can run, and the reason for each that cannot."""
    selections: list[Selection] = []
    refused: dict[str, str] = {}
    for name, campaign in campaigns.items():
        try:
            selections.append(compile_campaign(name, campaign, manifest))
        except InputError as error:
            refused[name] = str(error)
    return selections, refused


def _matches(glob: str, manifest: DecoderManifest) -> list[int]:
    pattern = re.compile(fnmatch.translate(glob))
    return [
        place
        for place, (name, message, _) in enumerate(manifest.names())
        if pattern.match(name) or pattern.match(f"{message.bus}.{name}")
    ]


def _closest(glob: str, manifest: DecoderManifest) -> str:
    names = [name for name, _, _ in manifest.names()]
    close = difflib.get_close_matches(glob, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "`bordnetz signals` lists what there is"
