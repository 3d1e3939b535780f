"""The plan for a person at a terminal: a paragraph for each campaign."""

from collections.abc import Iterable

from edge.plan import CampaignPlan, Plan


def text(plan: Plan, most_signals: int = 10) -> str:
    """most_signals and as many events of each campaign are named."""
    lines = [
        f"{plan.frames:,} frames in {plan.seconds:,.1f} s of {', '.join(plan.logs)}",
        f"all campaigns: {plan.bytes:,} bytes, {plan.units:,} units; a month {plan.mb_per_month:,.1f} MB and "
        f"{plan.units_per_month:,.0f} units a vehicle, {plan.fleet_mb_per_month:,.1f} MB and "
        f"{plan.fleet_units_per_month:,.0f} units the fleet"
        + (f", cost {plan.cost_per_month:,.2f}" if plan.cost_per_month is not None else ""),
        f"memory of the ring: {plan.ring_bytes:,} bytes",
    ]
    for campaign in plan.campaigns:
        lines += ["", *_campaign_lines(campaign, most_signals)]
    return "\n".join(lines)


def _campaign_lines(campaign: CampaignPlan, most: int) -> Iterable[str]:
    raw = f"{campaign.frames:,} raw frames, " if campaign.frames else ""
    yield (
        f"{campaign.campaign} (priority {campaign.priority}): {campaign.samples:,} of {campaign.samples_seen:,} "
        f"samples, {raw}{campaign.bytes:,} bytes in {campaign.blocks:,} blocks, {campaign.units:,} units; "
        f"a month {campaign.mb_per_month:,.2f} MB, {campaign.units_per_month:,.0f} units"
    )
    if campaign.events or campaign.conditions_true:
        more = ", …" if len(campaign.events) > most else ""
        yield f"  {len(campaign.events)} events: {', '.join(campaign.events[:most]) or 'none'}{more}"
    if not campaign.samples and not campaign.frames:
        yield "  nothing was collected"
    for signal in [signal for signal in campaign.signals if signal.samples][:most]:
        kept = f"{signal.samples:,} of {signal.samples_seen:,} samples"
        error = ""
        if signal.bound is not None and signal.max_error is not None:
            error = f", error {signal.max_error:.4g} of {signal.bound:.4g} allowed"
        yield f"  {signal.signal}: {signal.filter}, {kept}, {signal.bytes_alone:,} bytes alone{error}"
    silent = [signal.signal for signal in campaign.signals if not signal.samples_seen]
    if silent and campaign.samples:
        yield f"  {len(silent)} signals never came: {', '.join(silent[:most])}{', …' if len(silent) > most else ''}"
