"""Before generation: checks of what is asked for, the run's catalog, and the plan."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import adgen
from adgen.creatives.documents import PlanPart, Pointer
from adgen.creatives.journal import Journal
from adgen.creatives.probe import probe
from adgen.creatives.publish import read_pointer
from adgen.creatives.runs import Run, read_run
from adgen.creatives.storage import Storage
from adgen.creatives.stores import open_storage
from adgen.creatives.tombstones import Tombstones
from adgen.errors import AdgenError, InputError, ModelError, OwnedElsewhere, SettingsError
from adgen.finishing.gates import LOOK, TitleRules, rules_digest
from adgen.generation.engine_settings import ENGINE_VERSION
from adgen.generation.model_directory import ModelDirectory
from adgen.local_cache import user_cache
from adgen.on_ray.refresh.catalog_encoders import HistoryEncoder, TitleTokenizer, catalog_encoders
from adgen.on_ray.refresh.plan_tasks import map_buckets
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.records import bound_key, digest, public_resume_key
from adgen.shop.catalog.catalog import Catalog, CatalogPlace, build_catalog, open_catalog
from adgen.shop.catalog.rows import Encoders
from adgen.shop.inputs.tables import Inputs, open_inputs
from adgen.shop.key_files import Keys, load_keys
from adgen.shop.plan.fingerprint import Maker
from adgen.shop.plan.plan import PlanSummary, resume_key
from adgen.shop.plan.plan import make_plan as plan_pairs
from adgen.shop.plan.rows import ForgottenUsers, PlanRules

log = logging.getLogger(__name__)
T = TypeVar("T")
_TRIES = 3


@dataclass(frozen=True)
class Prepared:
    """A refresh that was checked, before its run begins: what it was asked for, and what that comes to."""

    settings: RefreshSettings
    """As given, with whole paths."""
    storage: Storage
    inputs: Inputs
    keys: Keys
    model: ModelDirectory
    model_digest: str
    """Of the directory and the engine's version, as manifests name it."""
    creative_digests: tuple[str, ...]
    """Of the settings that change a creative, as they were given: a path that they name is in it."""
    resume_key: str
    former_resume_key: str
    """Without the campaign key, as version 0.1 had it."""

    @property
    def settings_digest(self) -> str:
        """All of them in one."""
        return digest(*self.creative_digests)

    def journal(self, run_id: str) -> Journal:
        """Plan and journal of one of the campaign's runs."""
        return Journal(self.storage, self.settings.campaign, run_id, self.tombstones)

    @property
    def tombstones(self) -> Tombstones:
        """Who is forgotten, as the campaign's key names them."""
        return Tombstones(self.storage, self.keys.campaign_key)

    @property
    def history_items(self) -> int:
        """Clicks drawn for a prompt: as set, else as many as the model was made for."""
        asked = self.settings.plan.history_items
        return self.model.config.history_items if asked is None else asked


def prepare(settings: RefreshSettings, inputs: Inputs | None = None) -> Prepared:
    """Check store, inputs (default those that the settings name), keys and model; RunError before any work. InputError when there
    are no pairs."""
    given, settings = settings, settings.with_whole_paths()
    storage = open_storage(settings.store, settings.s3)
    probe(storage)
    storage.tighten()
    inputs = inputs or open_inputs(settings.inputs)
    if inputs["pairs"].num_rows == 0:
        raise InputError(f"{settings.inputs}: the table pairs has no rows, so there is nothing to make")
    keys = load_keys(settings.keys, settings.store)
    model = open_model(settings)
    made_by, chosen = maker_digest(model), given.creative_digests(model)
    # Where and how fast a run works may change between two tries; what it makes may not.
    identity = digest(digest(*chosen), made_by, settings.plan.digest(), rules_digest(), *keys.ids.values())
    former = resume_key(settings.campaign, identity, inputs.stamps)
    resumed_by = public_resume_key(bound_key(keys.campaign_key, settings.campaign), former)
    return Prepared(settings, storage, inputs, keys, model, made_by, chosen, resumed_by, former)


def maker_digest(model: ModelDirectory) -> str:
    """What makes a run's creatives, as run.json and fingerprints name it: the model directory and the engine's version."""
    return digest(model.digest, ENGINE_VERSION)


def run_details(prepared: Prepared) -> dict[str, Any]:
    """What run.json says of a new run apart from its protocol; no secret is among it."""
    settings = prepared.settings
    versions = {"adgen": adgen.__version__} | {name: version(name) for name in ("ray", "torch", "transformers", "deepspeed")}
    drawn = {"sampling": settings.sampling.of(prepared.model.sampling).model_dump(mode="json")}  # with what the model says itself
    return {
        "settings": settings.model_dump(mode="json", exclude={"keys"}) | drawn,
        "digests": {"model": prepared.model_digest, "settings": prepared.settings_digest, "rules": rules_digest()},
        "versions": versions,
        "key_ids": prepared.keys.ids,
    }


def make_plan(prepared: Prepared, run: Run) -> None:
    """The run's catalog, then the plan; its commit is the last write."""
    journal, forgotten = prepared.journal(run.run_id), prepared.tombstones.hashes()
    pointer, etag, (catalog, parts, summary) = over_published(prepared, partial(write_plan, prepared, journal))
    base_run = pointer.run_id if pointer else None
    digests = run.document.digests | {"catalog": catalog.index.name}
    left_out = prepared.inputs.left_out
    if left_out and not summary.pairs:
        raise InputError(f"{prepared.settings.inputs}: no pair is left, the ids of all are not UTF-8: {left_out}")
    run.update(base_run=base_run, digests=digests, duplicates=summary.duplicates, left_out=left_out)
    journal.commit_plan(
        parts,
        settings_digest=prepared.settings_digest,
        inputs=prepared.inputs.stamps,
        base_run=base_run,
        pointer_etag=etag,
        pointer_generation=pointer.generation if pointer else 0,
        forgotten=forgotten,
    )


def over_published(
    prepared: Prepared, plan: Callable[[str | None], T], tries: int = _TRIES
) -> tuple[Pointer | None, str | None, T]:
    """The campaign's pointer, its ETag, and what `plan` makes of the run that it names (None: nothing is published).

    `forget`, or a rollback with a clean-up, may publish another run and remove this one while it is read: then `plan` is called
    again. It reads all of the run before it writes.
    """
    pointer, etag = read_pointer(prepared.storage, prepared.settings.campaign)
    try:
        return pointer, etag, plan(pointer.run_id if pointer else None)
    except OwnedElsewhere:
        raise
    except AdgenError as error:
        if tries == 1 or read_pointer(prepared.storage, prepared.settings.campaign)[0] == pointer:
            raise
        log.warning("%s; another run is published in its place by now, so the plan starts again", error)
    return over_published(prepared, plan, tries - 1)


def write_plan(prepared: Prepared, journal: Journal, base_run: str | None) -> tuple[Catalog, list[PlanPart], PlanSummary]:
    """Bring the store's catalog up to date and write the plan's parts through `journal`; nothing is committed."""
    with tempfile.TemporaryDirectory(prefix="adgen-plan-") as folder:
        catalog = build_run_catalog(prepared, Path(folder) / "products")
        base = prepared.journal(base_run) if base_run else None
        rules = plan_rules(prepared, base_run)
        parts, summary = plan_pairs(rules, prepared.inputs, catalog, journal, Path(folder) / "pairs", base, map_buckets)
    return catalog, parts, summary


def plan_rules(prepared: Prepared, base_run: str | None) -> PlanRules:
    """What decides the plan."""
    settings = prepared.settings
    keys = prepared.keys.for_campaign(settings.campaign)
    return PlanRules(
        campaign_key=keys.campaign_key,
        user_secret=keys.user_secret,
        campaign_seed=settings.plan.campaign_seed,
        maker=Maker(prepared.model_digest, ENGINE_VERSION, (*prepared.creative_digests, LOOK)),
        history_items=prepared.history_items,
        history_order=prepared.model.config.history_order,
        variants=settings.plan.variants,
        when_unreadable="keep_previous" if settings.plan.keep_previous else "drop",
        base_run=base_run,
        title_rules=TitleRules(settings.finish) if base_run and _has_other_rules(prepared, base_run) else None,
        limit=settings.plan.limit,
        pairs_per_shard=settings.plan.pairs_per_shard,
        is_forgotten=ForgottenUsers(prepared.tombstones.hashes(), prepared.keys.campaign_key),
    )


def _has_other_rules(prepared: Prepared, base_run: str) -> bool:
    """Whether the published rows were judged by other rules than today's."""
    return read_run(prepared.storage, prepared.settings.campaign, base_run).digests.get("rules") != rules_digest()


def build_run_catalog(prepared: Prepared, folder: Path) -> Catalog:
    """Build or refresh the campaign's catalog; pictures that did not change are not read again."""
    settings = prepared.settings
    with catalog_encoders(settings.device) as run:
        place = CatalogPlace(prepared.storage, prepared.model_digest, settings.campaign, cache_folder())
        history, limits = HistoryEncoder(prepared.model, settings.device), settings.pictures
        encoders = Encoders(history, TitleTokenizer(prepared.model), reduce=history.reduce, limits=limits)
        return build_catalog(prepared.inputs, place, encoders, folder, run)


def catalog_of(prepared: Prepared, run: Run) -> Catalog:
    """The catalog that the run's plan was made with; files are fetched once a node."""
    return open_catalog(prepared.storage, prepared.model_digest, run.document.digests["catalog"], cache_folder())


def cache_folder() -> Path:
    """Where a node keeps its copies of catalog files; they are named by their hash, so runs share them."""
    return user_cache("catalog")


def open_model(settings: RefreshSettings) -> ModelDirectory:
    """The model that the settings name, checked; ModelError or SettingsError says what is wrong with it."""
    if settings.model is None or not settings.model.is_dir():
        raise ModelError(f"{settings.model}: no such model directory; name one with --model")
    model = ModelDirectory(settings.model)
    model.check()
    model.require_trained(settings.allow_untrained)
    asked, takes = settings.plan.history_items, model.config.history_items
    if asked is not None and asked > takes:
        raise SettingsError(f"plan.history_items: {asked} is more than the {takes} clicked products that {settings.model} takes")
    return model
