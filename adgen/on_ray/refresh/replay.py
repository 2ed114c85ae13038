"""Make a published creative again, from its lineage and what the lineage names, and compare.

Nothing of the store changes. The plan of the run that made the row holds its inputs, that run's run.json the settings and
the catalog, the lineage the number of slots, the device and the tokens. Runs in one process, without Ray.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from adgen.config import validate_settings
from adgen.creatives.documents import RunDocument
from adgen.creatives.journal import Journal
from adgen.creatives.reading import open_published, open_run
from adgen.creatives.storage import S3Access, Storage
from adgen.errors import AdgenError, ConsumerError, RunError
from adgen.finishing.fallbacks import usable_background
from adgen.finishing.finish import Finished, finish
from adgen.generation.model_directory import ModelDirectory
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.generate import Generate
from adgen.on_ray.refresh.look_up import LookUp
from adgen.on_ray.refresh.payload import product_facts
from adgen.on_ray.refresh.provenance import PROVENANCE, provenance, version_in
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.rows import Row
from adgen.records import FAILED, OK, digest, with_later_columns
from adgen.shop.catalog.catalog import open_catalog
from adgen.shop.plan.rows import PLAN_PAIRS, rows_to_make

Outcome = Literal["equal_bytes", "equal_tokens", "different_device", "unequal", "input_gone"]
EXIT_CODES: dict[Outcome, int] = {"equal_bytes": 0, "equal_tokens": 3, "different_device": 4, "unequal": 5, "input_gone": 6}
_PARTS_AT_ONCE = 16


@dataclass(frozen=True)
class Replay:
    """What came of it.

    equal_bytes: the same files. equal_tokens: title and image tokens are the same, the files are not (or the gates had
    kept them back). different_device: other tokens, but not on the device and versions that made the first ones. unequal:
    other tokens on the same ones, which must not be. input_gone: something it was made from is no more what it was.
    """

    outcome: Outcome
    detail: str
    pair_id: str
    variant: int
    run_id: str
    """The run that made the row."""
    title: str | None = None
    """Of the new creative, as the next two."""
    sha256: str | None = None
    tokens: str | None = None
    made: Row | None = None
    """How the published one was made, as its lineage says; `here` is how the new one was."""
    here: Row | None = None


class InputGone(AdgenError):
    """Something that the creative was made from cannot be had any more; the message names it."""


@dataclass(frozen=True)
class Source:
    """All that is known of how a published row was made."""

    row: Row
    run: RunDocument
    pair: Row
    """Its row of the plan."""
    lineage: Row


def replay(
    storage: Storage,
    campaign: str,
    pair_id: str,
    variant: int | None = None,
    model: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    access: S3Access | None = None,
) -> Replay:
    """Make a published creative of a pair again, of the variant that ranks first unless told. model: where its model directory is
    now, default where it was.

    ConsumerError: the pair or the variant is not published, or failed and has no creative. SettingsError: its run was made by a
    version whose settings this one does not know.
    """
    row, made_by = _published(storage, campaign, pair_id, variant)
    try:
        source = _source(storage, campaign, row, made_by)
        settings = _settings(source, storage, model, device, access)
        return _compare(source, *_make(source, settings, storage))
    except InputGone as gone:
        return Replay("input_gone", str(gone), pair_id, row["variant"], made_by)


# -- what it was made from -----------------------------------------------------------------------------------------------


def _published(storage: Storage, campaign: str, pair_id: str, variant: int | None) -> tuple[Row, str]:
    """The pair's manifest row, and the run that made it."""
    published = open_published(storage, campaign)
    rows = {row["variant"]: row for row in published.find(pair_id)}
    if not rows:
        raise ConsumerError(f"pair {pair_id} is not in run {published.run.run_id} of campaign {campaign}")
    row = min(rows.values(), key=lambda row: row["rank"] or 0) if variant is None else rows.get(variant)
    if row is None:
        there = ", ".join(map(str, rows))
        raise ConsumerError(f"pair {pair_id} has no variant {variant} in run {published.run.run_id}; it has {there}")
    if row["status"] == FAILED:
        raise ConsumerError(f"pair {pair_id} has no creative to make again: it failed ({row['reason']})")
    return row, row["carried_from"] or published.run.run_id


def _source(storage: Storage, campaign: str, row: Row, run_id: str) -> Source:
    with _gone(f"run {run_id}, which made it, was cleaned up"):
        run = open_run(storage, campaign, run_id).run
    journal = Journal(storage, campaign, run_id)
    with _gone(f"the plan of run {run_id} was removed"):
        index, pair = _planned(journal, row)
    with _gone(f"the lineage of run {run_id} was removed"):
        table = journal.read_lineage(index)
    found = _of(row, table).to_pylist() if table is not None else []
    if not found:
        raise InputGone(f"the lineage of run {run_id} does not hold the pair")
    return Source(row, run, pair, found[0])


def _of(row: Row, table: pa.Table) -> pa.Table:
    """What a plan or a lineage has of a manifest row."""
    return table.filter(pc.and_(pc.equal(table["pair_id"], row["pair_id"]), pc.equal(table["variant"], row["variant"])))


def _planned(journal: Journal, row: Row) -> tuple[int, Row]:
    """The shard that generated the row, and its row of the plan. Parts are not ordered by pair: they are read through."""
    parts = [part for part in journal.read_plan().parts if part.kind == "generate"]

    def look(part: Any) -> list[Row]:
        return _of(row, rows_to_make(with_later_columns(journal.read_plan_part(part), PLAN_PAIRS))).to_pylist()

    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        for start in range(0, len(parts), _PARTS_AT_ONCE):
            some = parts[start : start + _PARTS_AT_ONCE]
            for part, rows in zip(some, pool.map(look, some), strict=True):
                if rows:
                    return part.index, rows[0]
    raise InputGone(f"the plan of run {journal.run_id} does not hold the pair any more")


def _settings(source: Source, storage: Storage, model: Path | None, device: str, access: S3Access | None) -> RefreshSettings:
    """The run's own settings, for one engine here. The model must be the one that made the row."""
    values = source.run.settings | {"store": storage.uri, "campaign": source.run.campaign, "device": device}
    values |= {"model": model or values.get("model"), "s3": {}}
    settings = validate_settings(RefreshSettings, values, f"settings of run {source.run.run_id}")
    slots = source.lineage["num_slots"] or settings.engine.num_slots
    off = tuple(filter(None, (source.lineage["kernels_off"] or "").split(",")))
    engine = settings.engine.model_copy(update={"num_slots": slots, "tensor_parallel": 1, "switch_off": off})
    settings = settings.model_copy(update={"engine": engine, "s3": access or S3Access()})
    _require_model(source, settings)
    return settings


def _require_model(source: Source, settings: RefreshSettings) -> None:
    from adgen.generation.engine_settings import ENGINE_VERSION

    with _gone(f"the model directory {settings.model} is not here (say where it is with --model)"):
        found = ModelDirectory(settings.model).digest
    # The row's digest is of the directory and of the engine that made it.
    engine = version_in(source.lineage["versions"], "engine") or ENGINE_VERSION
    if digest(found, engine) != source.row["model_digest"]:
        raise InputGone(f"the model directory {settings.model} is not the one that made it (name another with --model)")


# -- making and comparing ------------------------------------------------------------------------------------------------


def _make(source: Source, settings: RefreshSettings, storage: Storage) -> tuple[Finished, Row]:
    """The creative, made again, and its provenance."""
    import torch

    items = source.lineage["history_items"] or 0  # a row of a version that repeated no clicks says nothing
    context = Context(settings, source.run.run_id, source.row["model_digest"], "", history_items=items)
    pair = dict(source.pair)
    with TemporaryDirectory(prefix="adgen-replay-") as cache, _gone("the catalog of its run was removed"):
        catalog = open_catalog(storage, source.row["model_digest"], source.run.digests.get("catalog", ""), cache)
        products = LookUp(context, catalog).look_up([pair])
    if pair["reason"] is not None:
        raise InputGone(f"its product's picture: {pair['reason']}: {pair['detail']}")
    if source.row["title_source"] is None:  # of a version that drew once
        context = replace(context, settings=settings.drawn_once())
    maker = Generate(context)
    with _threads_restored():
        engine = maker.engine
        # Sums over another number of threads end in other bits.
        torch.set_num_threads(source.lineage["num_threads"] or torch.get_num_threads())
        [result] = engine.generate(maker.requests([pair], products.squares))
        here = provenance(result, settings)
    product = product_facts(pair, products.pictures[pair["product_id"]])
    background, _ = usable_background(result.picture.numpy(), product, settings.finish)
    return finish(background, result.title, product, settings.finish), here


def _compare(source: Source, made: Finished, here: Row) -> Replay:
    before = {name: source.lineage[name] for name in PROVENANCE}
    same_files = _files(made) == _published_files(source.row)
    same_tokens = before["tokens"] in (None, here["tokens"])
    made_by = ("device", "versions", "num_threads", "num_slots", "kernels_off")
    changed = [name for name in made_by if before[name] not in (None, here[name])]
    differs = "; ".join(f"{name} was {before[name]}, is {here[name]}" for name in changed)
    if same_files and source.row["status"] == OK:
        outcome, detail = "equal_bytes", differs
    elif same_tokens and (before["tokens"] or source.row["status"] != OK):
        kept_back = "" if source.row["status"] == OK else "the gates had kept it back, so no file is there to compare"
        outcome, detail = "equal_tokens", kept_back or differs or "the files differ: finishing or its rules changed"
    elif changed:
        outcome, detail = "different_device", differs
    else:
        outcome, detail = "unequal", "other tokens on the same device and versions: this is a fault of the engine"
    data = made.picture.data
    sha256 = hashlib.sha256(data).hexdigest()
    identity = (source.row["pair_id"], source.row["variant"], source.run.run_id)
    return Replay(outcome, detail, *identity, made.title or None, sha256, here["tokens"], before, here)


def _files(made: Finished) -> tuple:
    """Title and hashes of all files, the main one first."""
    pictures = [made.picture, *(rendition.picture for rendition in made.renditions)]
    return (made.title or None, *(hashlib.sha256(picture.data).hexdigest() for picture in pictures))


def _published_files(row: Row) -> tuple:
    return (row["title"], row["sha256"], *(rendition["sha256"] for rendition in row["renditions"] or ()))


@contextmanager
def _gone(what: str) -> Iterator[None]:
    """Where something cannot be read, it is what the creative cannot be made again for."""
    try:
        yield
    except RunError as error:
        raise InputGone(f"{what} ({error})") from None


@contextmanager
def _threads_restored() -> Iterator[None]:
    import torch

    mine = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(mine)
