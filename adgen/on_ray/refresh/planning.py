"""Before generation: checks of what is asked for, the run's catalog, and the plan."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

import adgen
from adgen.creatives.documents import PlanPart
from adgen.creatives.erasure import forgotten_hashes
from adgen.creatives.journal import Journal
from adgen.creatives.publish import read_pointer
from adgen.creatives.runs import Run
from adgen.creatives.storage import Storage
from adgen.errors import InputError, ModelError
from adgen.finishing.gates import rules_digest
from adgen.generation.engine import ENGINE_VERSION
from adgen.model.checkpoint import model_digest
from adgen.model.config import ModelConfig
from adgen.on_ray.refresh.catalog_encoders import HistoryEncoder, TitleTokenizer, catalog_encoders
from adgen.on_ray.refresh.plan_tasks import map_buckets
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.records import digest
from adgen.shop.catalog.catalog import Catalog, build_catalog, open_catalog
from adgen.shop.inputs.tables import Inputs, open_inputs
from adgen.shop.key_files import Keys, load_keys
from adgen.shop.plan.plan import PlanSummary, resume_key
from adgen.shop.plan.plan import make_plan as plan_pairs
from adgen.shop.plan.rows import ForgottenUsers, PlanRules


@dataclass(frozen=True)
class Planned:
    """What is known before a run begins."""

    inputs: Inputs
    keys: Keys
    model_digest: str
    settings_digest: str
    resume_key: str


def prepare(settings: RefreshSettings, inputs: Inputs | None = None) -> Planned:
    """Check inputs (default those that the settings name), keys and model; RunError before any work. InputError when there
    are no pairs."""
    inputs = inputs or open_inputs(settings.inputs)
    if inputs["pairs"].num_rows == 0:
        raise InputError(f"{settings.inputs}: the table pairs has no rows, so there is nothing to make")
    keys = load_keys(settings.keys, settings.store)
    check_model(settings)
    model = maker_digest(settings.model)
    chosen = settings.creative_digest()
    # Where and how fast a run works may change between two tries; what it makes may not.
    identity = digest(chosen, model, settings.plan.digest(), rules_digest(), *keys.ids.values())
    return Planned(inputs, keys, model, chosen, resume_key(settings.campaign, identity, inputs.stamps))


def maker_digest(model: Path) -> str:
    """What makes a run's creatives, as run.json and fingerprints name it: the model directory and the engine's version."""
    return digest(model_digest(model), ENGINE_VERSION)


def run_details(settings: RefreshSettings, planned: Planned) -> dict[str, Any]:
    """What run.json says of a new run apart from its protocol; no secret is among it."""
    import deepspeed
    import torch
    import transformers

    versions = {m.__name__: m.__version__ for m in (adgen, ray, torch, transformers, deepspeed)}
    drawn = {"sampling": settings.sampling.of(settings.model).model_dump(mode="json")}  # with what the model says itself
    return {
        "settings": settings.model_dump(mode="json", exclude={"keys"}) | drawn,
        "digests": {"model": planned.model_digest, "settings": planned.settings_digest, "rules": rules_digest()},
        "versions": versions,
        "key_ids": planned.keys.ids,
    }


def make_plan(settings: RefreshSettings, storage: Storage, run: Run, planned: Planned) -> None:
    """The run's catalog, then the plan; its commit is the last write."""
    pointer, etag = read_pointer(storage, settings.campaign)
    base_run = pointer.run_id if pointer else None
    journal = Journal(storage, settings.campaign, run.run_id)
    catalog, parts, summary = write_plan(settings, storage, planned, journal, base_run)
    digests = run.document.digests | {"catalog": catalog.index.name}
    run.update(base_run=base_run, digests=digests, duplicates=summary.duplicates)
    journal.commit_plan(
        parts,
        settings_digest=planned.settings_digest,
        inputs=planned.inputs.stamps,
        base_run=base_run,
        pointer_etag=etag,
        pointer_generation=pointer.generation if pointer else 0,
    )


def write_plan(
    settings: RefreshSettings, storage: Storage, planned: Planned, journal: Journal, base_run: str | None
) -> tuple[Catalog, list[PlanPart], PlanSummary]:
    """Bring the catalog in `storage` up to date and write the plan's parts through `journal`; nothing is committed."""
    with tempfile.TemporaryDirectory(prefix="adgen-plan-") as folder:
        catalog = build_run_catalog(settings, storage, planned, Path(folder) / "products")
        parts, summary = plan_pairs(
            plan_rules(settings, planned, base_run),
            planned.inputs,
            catalog,
            journal,
            Path(folder) / "pairs",
            base=Journal(storage, settings.campaign, base_run) if base_run else None,
            pairs_per_shard=settings.plan.pairs_per_shard,
            limit=settings.plan.limit,
            is_forgotten=ForgottenUsers(frozenset(forgotten_hashes(storage)), planned.keys.campaign_key),
            run=map_buckets,
        )
    return catalog, parts, summary


def plan_rules(settings: RefreshSettings, planned: Planned, base_run: str | None) -> PlanRules:
    """What of the settings decides the plan."""
    keys = planned.keys.for_campaign(settings.campaign)
    items = settings.plan.history_items
    return PlanRules(
        campaign_key=keys.campaign_key,
        user_secret=keys.user_secret,
        campaign_seed=settings.plan.campaign_seed,
        model_digest=planned.model_digest,
        engine_version=ENGINE_VERSION,
        digests=(*settings.creative_digests(), rules_digest()),
        history_items=model_config(settings).history_items if items is None else items,
        when_unreadable="keep_previous" if settings.plan.keep_previous else "drop",
        base_run=base_run,
    )


def build_run_catalog(settings: RefreshSettings, storage: Storage, planned: Planned, folder: Path) -> Catalog:
    """Build or refresh the campaign's catalog; pictures that did not change are not read again."""
    with catalog_encoders() as run:
        return build_catalog(
            planned.inputs,
            storage,
            planned.model_digest,
            settings.campaign,
            folder,
            cache_folder(),
            encoder=HistoryEncoder(settings.model),
            tokenize=TitleTokenizer(settings.model),
            run=run,
        )


def catalog_of(settings: RefreshSettings, storage: Storage, run: Run, planned: Planned) -> Catalog:
    """The catalog that the run's plan was made with; files are fetched once a node."""
    return open_catalog(storage, planned.model_digest, run.document.digests["catalog"], cache_folder())


def cache_folder() -> Path:
    """Where a node keeps its copies of catalog files; they are named by their hash, so runs share them."""
    return Path(tempfile.gettempdir()) / "adgen-catalog"


def model_config(settings: RefreshSettings) -> ModelConfig:
    """The sizes of the model, from our directory or a Janus one."""
    from adgen.model.checkpoint import read_config

    return read_config(settings.model)


def check_model(settings: RefreshSettings) -> None:
    """ModelError if the directory has no sizes, tokenizer or weights, or a weight file is cut short, SettingsError if its own
    sampling is wrong; loads no weights."""
    from adgen.generation.prompt import Prompter
    from adgen.model.weight_files import read_tensors, weight_files

    if not Path(settings.model).is_dir():
        raise ModelError(f"{settings.model}: no such model directory; name one with --model")
    Prompter.load(settings.model, model_config(settings))
    settings.sampling.of(settings.model)
    for path in weight_files(Path(settings.model)):
        if path.suffix == ".safetensors":  # its header says how long it must be
            next(read_tensors(path), None)
