"""A proof's creatives: the refresh's own catalog, plan, draw, look-up and engine stage, with other histories put in.

A condition is what a pair is shown: its user's drawn clicks, nobody's, another user's, or its own without the product. All
conditions of a pair share its seed, so nothing else differs between two pictures.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
from PIL import Image
from ray.data import ActorPoolStrategy, DataContext

from adgen.creatives.layout import new_run_id
from adgen.errors import InputError
from adgen.finishing.finish import product_cutout
from adgen.generation.generate import Request
from adgen.on_ray.cluster import cluster_device, slot_resources
from adgen.on_ray.proof.settings import ProofSettings
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.generate import Generate
from adgen.on_ray.refresh.look_up import FOUND, LookUp
from adgen.on_ray.refresh.payload import pack, pack_files, painted, product_facts, unpack, unpack_files, with_columns
from adgen.on_ray.refresh.planning import prepare, write_plan
from adgen.on_ray.refresh.settings import PlanSettings, RefreshSettings
from adgen.on_ray.rows import Row, as_row_error, raise_row_error
from adgen.progress import Progress
from adgen.shop.catalog.catalog import Catalog
from adgen.shop.inputs.tables import Inputs
from adgen.shop.plan.histories import Histories

PAIRS_PER_SHARD = 16


@dataclass(frozen=True)
class Condition:
    """What pairs are shown: planned rows, each with the drawn clicks of its prompt."""

    rows: Sequence[Row]
    stage: Literal["whole", "product hidden", "title"] = "whole"


@dataclass(frozen=True)
class Creative:
    """What the engine made of a pair under a condition."""

    title: str
    picture: np.ndarray | None
    """(S, S, 3) uint8, not pasted; None of a title alone."""
    first_title: str | None = None
    """Of a title alone: as it was drawn first, before gates and attempts."""
    is_template: bool = False


@dataclass
class Maker:
    """One model, ready to make creatives of planned pairs."""

    context: Context
    catalog: Catalog
    rows: list[Row]
    """Of the plan, without those that cannot be made."""
    history_items: int
    history_order: Literal["keyed", "published"]
    num_unusable: int
    seconds: float = field(default=0.0)
    """Of engines, so far."""
    pictures: dict[str, bytes] = field(default_factory=dict)
    """Of the products, as look-up found them."""

    def draws(self, rows: Sequence[Row], inputs: Inputs, users: Sequence[str]) -> list[list[str]]:
        """For each of `rows` the coarse step's draw from the clicks of `users[i]`."""
        clicks = inputs["histories"].reader().read_all()
        clicks = clicks.filter(pc.is_in(clicks["user_id"], value_set=pa.array(sorted(set(users)))))
        asked = [(row["pair_id"], user, row["product_id"], row["product_title"]) for row, user in zip(rows, users, strict=True)]
        return [drawn.ids for drawn in Histories(clicks, self.catalog).draw(asked, self.history_items, self.history_order)]

    def make(self, conditions: Mapping[str, Condition], progress: Progress) -> dict[str, list[Creative]]:
        """A creative of each row of each condition, in one go: engines start once. InputError where a product cannot be
        shown to the model."""
        shards = [
            {"index": index, "condition": name, "stage": condition.stage, "shard": pack(pa.Table.from_pylist(list(part)))}
            for name, condition in conditions.items()
            for index, part in enumerate(_parts(condition.rows))
        ]
        made: dict[tuple[str, int], list[Creative]] = {}
        for done in map(raise_row_error, _dataset(self.context, self.catalog, shards).iter_rows()):
            pairs = unpack(done["shard"]).to_pylist()
            made[done["condition"], done["index"]] = [_creative(pair) for pair in pairs]
            self.pictures |= unpack_files(done["pictures"])
            self.seconds += done["engine_seconds"]
            progress.advance(len(pairs))
        return {name: [each for key in sorted(made) if key[0] == name for each in made[key]] for name in conditions}

    def product(self, row: Row) -> Image.Image:
        """A row's product as it was cut out."""
        return product_cutout(product_facts(row, self.pictures[row["product_id"]]))


def with_histories(rows: Sequence[Row], histories: Sequence[Sequence[str]]) -> list[Row]:
    """Planned pairs with these drawn clicks instead of their own."""
    return [row | {"history_ids": list(ids)} for row, ids in zip(rows, histories, strict=True)]


def open_maker(settings: ProofSettings, model: Path, inputs: Inputs, scratch: Path) -> Maker:
    """Catalog and plan of `inputs` for a model; InputError when no pair can be made."""
    refresh = refresh_settings(settings, model, inputs.uri, scratch)
    prepared = prepare(refresh, inputs)
    journal = prepared.journal(new_run_id())
    catalog, parts, summary = write_plan(prepared, journal, None)
    rows = [row for part in parts for row in journal.read_plan_part(part).to_pylist() if row["reason"] is None]
    if not rows:
        raise InputError(f"{inputs.uri}: no pair with a reference can be made ({summary.reasons})")
    shown = prepared.model.config.history_items
    context = Context(refresh, journal.run_id, prepared.model_digest, prepared.settings_digest, history_items=shown)
    drawn = prepared.history_items, prepared.model.config.history_order
    return Maker(context, catalog, rows, *drawn, summary.planned_failures)


def refresh_settings(settings: ProofSettings, model: Path, inputs: str, scratch: Path) -> RefreshSettings:
    """The refresh that these creatives could have come from."""
    return RefreshSettings(
        inputs=inputs,
        store=str(scratch / "store"),
        campaign="proof",
        model=model,
        allow_untrained=settings.allow_untrained,
        device=cluster_device(settings.device),
        plan=PlanSettings(pairs_per_shard=PAIRS_PER_SHARD),
        sampling=settings.sampling,
        engine=settings.engine,
        cluster=settings.cluster,
    )


class MakeShard:
    """A shard of planned pairs -> the same with title and picture; both of the refresh's stages around one engine."""

    def __init__(self, context: Context, catalog: Catalog):
        if context.settings.device == "cpu":
            torch.set_num_threads(1)  # as many engines as cores: together they are quicker than one with all threads
        self.look_up = LookUp(context, catalog)
        self.context = context
        self.stages: dict[str, Generate] = {"whole": DrawnOnce(context)}

    @as_row_error
    def __call__(self, row: Row) -> Row:
        """One shard."""
        shard = unpack(row["shard"])
        pairs = shard.to_pylist()
        pictures, squares = self.look_up.look_up(pairs)
        packed = {
            "shard": pack(with_columns(shard, pairs, FOUND)),
            "pictures": pack_files(pictures),
            "squares": pack_files(squares),
        }
        return self._stage(row["stage"])(row | packed)

    def _stage(self, name: str) -> Generate:
        if name not in self.stages:
            self.stages[name] = OTHER_STAGES[name](self.context, self.stages["whole"].engine)
        return self.stages[name]


class DrawnOnce(Generate):
    """Titles and pictures as the model makes them: nothing is drawn again, nothing stands in."""

    def requests(self, pairs: list[Row], squares: Mapping[str, bytes]) -> list[Request]:
        """The refresh's, without its checks."""
        unchecked = {"check_title": None, "check_picture": None, "template_title": None}
        return [replace(request, **unchecked) for request in super().requests(pairs, squares)]


class HiddenProduct(DrawnOnce):
    """The same with the foreground path off."""

    def _conditions(self, squares: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
        return {}


class WriteTitles(Generate):
    """Titles alone, as a refresh has them after its gates, attempts and templates; and what was drawn first."""

    @as_row_error
    def __call__(self, row: Row) -> Row:
        """Adds a title to each pair."""
        started = time.perf_counter()
        shard = unpack(row["shard"])
        pairs = shard.to_pylist()
        wanted = [pair for pair in pairs if pair["reason"] is None]
        requests = self.requests(wanted, {})
        for pair, result in zip(wanted, self.engine.titles(requests), strict=True):
            source = "template" if result.is_template else "model"
            pair |= {"title": result.title, "first_title": result.first, "title_source": source}
        titled = with_columns(shard, pairs, ("title", "first_title", "title_source"))
        return row | {"shard": pack(titled), "squares": b"", "engine_seconds": time.perf_counter() - started}


OTHER_STAGES: dict[str, type[Generate]] = {"product hidden": HiddenProduct, "title": WriteTitles}


def _dataset(context: Context, catalog: Catalog, shards: list[Row]) -> ray.data.Dataset:
    data = DataContext.get_current()
    data.enable_progress_bars = False
    data.actor_task_retry_on_errors = False
    slot = slot_resources(context.settings.device)
    kind = "GPU" if "GPU" in slot else "CPU"
    engines = context.settings.cluster.actors or max(1, int(ray.cluster_resources().get(kind, 1)))
    return ray.data.from_items(shards, override_num_blocks=len(shards)).map(
        MakeShard,
        fn_constructor_args=(context, catalog),
        compute=ActorPoolStrategy(size=min(engines, len(shards))),
        num_cpus=0.9,  # Ray Data's own tasks need some room
        num_gpus=slot.get("GPU", 0),
    )


def _creative(pair: Row) -> Creative:
    if pair["reason"] is not None:
        raise InputError(f"product {pair['product_id']}: {pair['reason']}: {pair['detail']}")
    picture = None if pair.get("picture") is None else painted(pair["picture"])
    return Creative(pair["title"] or "", picture, pair.get("first_title"), pair["title_source"] == "template")


def _parts(rows: Sequence[Row]) -> list[Sequence[Row]]:
    return [rows[start : start + PAIRS_PER_SHARD] for start in range(0, len(rows), PAIRS_PER_SHARD)]
