"""The gate before publishing: a sample of the run's creatives is scored, and a run that falls short is held."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from adgen.creatives.documents import PlanPart
from adgen.creatives.journal import Journal
from adgen.creatives.runs import Run
from adgen.errors import SettingsError
from adgen.on_ray.cluster import cluster_device
from adgen.on_ray.refresh.settings import GateSettings, RefreshSettings
from adgen.on_ray.rows import Row
from adgen.on_ray.scoring.sampling import by_part, read_panel, spread_places
from adgen.progress import Progress
from adgen.records import OK
from adgen.shipped import shipped_encoder
from adgen.shop.inputs.tables import Inputs

ROWS_AN_ITEM = 64


class Threshold(NamedTuple):
    """A setting, the score that it is about, and what falls short."""

    setting: str
    score: str
    is_least: bool


TEMPLATE = "template"  # no score: whether a row's title_source says so
THRESHOLDS = (
    Threshold("history_margin_min", "pbs_history_margin", is_least=True),
    Threshold("allowed_words_min", "allowed_words", is_least=True),
    Threshold("copy_rate_max", "copied", is_least=False),
    Threshold("product_kept_min", "product_iou", is_least=True),
    Threshold("templates_max", TEMPLATE, is_least=False),
)


def check_gate_settings(gate: GateSettings) -> None:
    """SettingsError, before any work, where a threshold needs an encoder that is not there; ModelError where it is none: a run
    that fails at its gate is lost with all that it generated."""
    encoder = gate_encoder(gate)
    if gate.history_margin_min is not None and encoder is None:
        raise SettingsError("gate.encoder: gate.history_margin_min needs a PBS encoder, and this package ships none: name one")
    if encoder is not None and not encoder.exists():
        raise SettingsError(f"gate.encoder: {encoder}: there is no such file or folder")
    if encoder is not None:
        from adgen.model.pbs import load_pbs

        load_pbs(encoder)


def gate_encoder(gate: GateSettings) -> Path | None:
    """The PBS encoder that the thresholds need; None where none does, or there is none."""
    return (gate.encoder or shipped_encoder()) if gate.history_margin_min is not None else None


def why_held(settings: RefreshSettings, run: Run, inputs: Inputs, progress: Progress) -> str:
    """Score a sample of the finished run and write the verdict to run.json; why it must be held, or "" to publish it."""
    gate = settings.gate
    if not gate.is_on:
        return ""
    # Networks and their libraries are loaded for a gate that is on alone.
    from adgen.evaluation.scoring.networks import NetworkPaths
    from adgen.on_ray.scoring.workers import ScoringContext, score

    journal = Journal(run.storage, run.campaign, run.run_id)
    # So many rows that about `sample` of them rank first: others are not scored.
    items = sample_items(journal.read_plan().parts, gate.sample * settings.plan.variants, run.run_id)
    sizes = {item["index"]: sum(map(len, item["offsets"])) for item in items}
    progress.phase("gate", sum(sizes.values()))
    encoder = gate_encoder(gate)
    context = ScoringContext(
        store=settings.store,
        access=settings.s3,
        campaign=run.campaign,
        run_id=run.run_id,
        inputs=inputs,
        networks=NetworkPaths(encoder=encoder and encoder.resolve()),
        device=cluster_device(settings.device) if encoder else "cpu",
        other_users=read_panel(journal) if encoder else (),
    )
    tables = []
    for done in score(context, items, settings.cluster):
        run.check()
        progress.advance(sizes[done.index])
        tables.append(done.rows)
    verdict = verdict_of(gate, tables, templates_in(journal, items) if gate.templates_max is not None else ())
    verdict["published_anyway"] = settings.publish_anyway and not verdict["passed"]
    run.update(gate=verdict)
    return "" if verdict["passed"] or settings.publish_anyway else "held by its gate: " + "; ".join(verdict["reasons"])


def sample_items(parts: Sequence[PlanPart], size: int, key: str) -> list[Row]:
    """Work items for `score`: at most `size` rows, evenly spread over all rows from a start that `key` decides. The same key
    chooses the same rows."""
    places = spread_places(parts, size, "gate", key)
    num_items = -(-len(places) // ROWS_AN_ITEM)
    items = (by_part(places[index::num_items]) for index in range(num_items))
    return [{"index": index, "parts": list(item), "offsets": list(item.values())} for index, item in enumerate(items)]


def templates_in(journal: Journal, items: Sequence[Row]) -> list[float]:
    """Of each ok row of a sample: 1 where its title is by template, else 0."""
    places = [
        (part, offset) for item in items for part, offsets in zip(item["parts"], item["offsets"], strict=True) for offset in offsets
    ]
    found = []
    for part in sorted({part for part, _ in places}):
        rows = journal.read_part(part).to_pylist()
        some = [rows[offset] for each, offset in places if each == part and offset < len(rows)]
        found += [float(row["title_source"] == "template") for row in some if row["status"] == OK]
    return found


def verdict_of(gate: GateSettings, tables: Iterable[pa.Table], templates: Sequence[float] = ()) -> dict[str, Any]:
    """The verdict of scored rows: what each threshold's score came to over the rows with status ok, and what fell short.
    templates: of ok rows, 1 for a title by template."""
    rows = [row for table in tables for row in table.to_pylist()]
    good = [row for row in rows if row["status"] == OK]
    found: dict[str, dict[str, Any]] = {}
    reasons = []
    for setting, name, is_least in THRESHOLDS:
        wanted = getattr(gate, setting)
        if wanted is None:
            continue
        values = templates if name == TEMPLATE else [row[name] for row in good if row[name] is not None]
        mean = sum(values) / len(values) if values else None
        found[setting] = {"wanted": wanted, "found": mean, "rows": len(values)}
        if mean is None:
            reasons.append(f"{setting}: none of {len(rows)} rows has a {name}")
        elif (mean < wanted) if is_least else (mean > wanted):
            reasons.append(f"{setting} is {wanted:g}, {name} of {len(values)} creatives is {mean:.4g}")
    return {"passed": not reasons, "reasons": reasons, "sample": len(rows), "thresholds": found}
