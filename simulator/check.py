"""`bordnetz check`: find out what a file is, and what is wrong with it."""

from pathlib import Path

import msgspec

from edge import manifest as manifests
from edge.campaign import Campaign, Selection, compile_campaign, compile_campaigns
from edge.errors import InputError
from edge.typed import explain
from simulator import deployment
from simulator.template import PLATFORM


def check_file(path: Path, manifest: Path | None = None, platform: str = PLATFORM) -> list[str]:
    """Findings, one line each. platform: of the images in a template.

    Raises InputError: it cannot be read, or is nothing that can be checked.
    """
    suffix = path.suffix.lower()
    if suffix == ".manifest":
        return _findings(path)
    if suffix == ".json":
        document = deployment.read_json(path)
        if "campaigns" in document:
            return _campaign_findings(path, document["campaigns"], manifest)
        return deployment.check(path, platform=platform)
    from edge.database import SUFFIXES, compile_databases

    if suffix in SUFFIXES:
        try:
            return [str(diagnostic) for diagnostic in compile_databases({"bus": [path]})[1]]
        except InputError as error:
            return [str(error)]
    raise InputError(path, "is nothing that can be checked", f"known are .json .manifest {' '.join(SUFFIXES)}")


def _findings(path: Path) -> list[str]:
    try:
        manifests.load(path)
    except InputError as error:
        if not path.exists():
            raise
        return [str(error)]
    return []


def read_campaigns(path: Path, manifest: manifests.DecoderManifest) -> list[Selection]:
    """The campaigns of a document, compiled. Raises InputError: with the first finding, where there is one."""
    document = deployment.read_json(path)
    if not isinstance(document.get("campaigns"), dict) or not document["campaigns"]:
        raise InputError(path, "holds no campaigns", 'for example {"campaigns": {"drive": {"signals": {"*": {}}}}}')
    selections = []
    for name, campaign in document["campaigns"].items():
        try:
            selections.append(compile_campaign(name, msgspec.convert(campaign, Campaign), manifest))
        except msgspec.ValidationError as error:
            raise InputError(f"{path}: campaign {name}", explain(error, Campaign)) from error
        except InputError as error:
            raise InputError(f"{path}: {error.place}", error.problem, error.way_out) from error
    return selections


def _campaign_findings(path: Path, campaigns: object, manifest: Path | None) -> list[str]:
    if not isinstance(campaigns, dict):
        return [f"{path}: campaigns: is not an object of campaigns by name"]
    findings, valid = [], {}
    for name, campaign in campaigns.items():
        try:
            valid[name] = msgspec.convert(campaign, Campaign)
        except msgspec.ValidationError as error:
            findings.append(f"{path}: campaign {name}: {explain(error, Campaign)}")
    if manifest is not None:
        refused = compile_campaigns(valid, manifests.load(manifest))[1]
        findings += [f"{path}: {reason}" for reason in refused.values()]
    return findings
