"""The proof on one screen: a shop that nobody trained on, creatives under several histories, and what they show."""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray

from adgen.errors import RunError, SettingsError
from adgen.evaluation.proof.result import Proof
from adgen.evaluation.proof.sheet import SUFFIXES
from adgen.generation.model_directory import ModelDirectory
from adgen.on_ray.proof.creatives import make_all, make_own
from adgen.on_ray.proof.measures import comparison, measure, noise_rows
from adgen.on_ray.proof.pairs import choose_pairs, draw_held_out_shop
from adgen.on_ray.proof.settings import ProofSettings
from adgen.on_ray.proof.sheet import write_sheet
from adgen.on_ray.proof.style_classifier import train_classifier
from adgen.on_ray.proof.unseen import prove_unseen
from adgen.progress import Progress
from adgen.shipped import shipped_encoder, shipped_model
from adgen.shop.synthetic.controlled_histories import stray_clicks


def prove(settings: ProofSettings, progress: Progress) -> Proof:
    """Everything that `settings` ask for. Ray must be connected; RunError says what is wrong before any work."""
    started = time.time()
    refuse_other_machines(tempfile.gettempdir())
    settings = with_models(settings.with_whole_paths())
    models = dict(ablation_models(settings.ablation))
    with tempfile.TemporaryDirectory(prefix="adgen-proof-") as folder:
        scratch = Path(folder)
        side = ModelDirectory(settings.model).config.image.image_size
        progress.phase("shop")
        shop = settings.shop or scratch / "shop"
        uri = settings.inputs or draw_held_out_shop(shop, settings.seed, settings.pairs, side, os.cpu_count() or 1)
        pairs = choose_pairs(uri, settings.pairs, settings.noise, scratch)
        classifier = train_classifier(settings.seed, settings.classifier_pictures, side, progress) if pairs.truth else None
        made = make_all(settings, pairs, scratch, progress)
        progress.phase("measure")
        proof = measure(settings, pairs, made, classifier)
        proof.noise = noise_rows(pairs, made, classifier)
        for name, model in models.items():
            others = make_own(settings, name, model, pairs, scratch, progress)
            proof.ablation.append(comparison(name, settings, pairs, others, classifier))
        if settings.sheet is not None:
            write_sheet(settings.sheet, pairs, made)
        proof.unseen = prove_unseen(settings, scratch, progress)
    if "photographs" in settings.unseen and settings.photographs is None:
        proof.notes.append("no photographs: name a folder of them with --photographs")
    proof.values |= {"seed": settings.seed, "model_digest": made.maker.context.model_digest}
    proof.values |= {"engine_seconds": round(made.maker.seconds, 1), "seconds": round(time.time() - started, 1)}
    return proof


def refuse_other_machines(scratch: str) -> None:
    """RunError where the cluster has nodes on other machines than one: what a proof draws, plans and reads lies in the local
    folder `scratch`, and engines elsewhere would not find it."""
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1:
        raise RunError(
            f"proof: the cluster has {len(machines)} machines, but a proof's tables and pictures lie in {scratch} of this one "
            "alone: run it on a cluster of one machine, or without cluster.address and RAY_ADDRESS"
        )


def with_models(settings: ProofSettings) -> ProofSettings:
    """The settings with the shipped model and encoder where none are named. SettingsError: no model, a folder that is
    not there, or a setting that a proof cannot follow."""
    model = settings.model or shipped_model()
    if model is None:
        raise SettingsError("model: this package holds no trained model: name one with --model")
    encoder = settings.encoder or shipped_encoder()
    for name, folder in (("model", model), ("encoder", encoder), ("ablation", settings.ablation)):
        if folder is not None and not folder.is_dir():
            raise SettingsError(f"{name}: {folder}: no such folder")
    if settings.sheet is not None and settings.sheet.suffix.lower() not in SUFFIXES:
        raise SettingsError(f"sheet: {settings.sheet}: name a picture file, one of {', '.join(SUFFIXES)}")
    if settings.engine.tensor_parallel > 1:
        raise SettingsError(f"engine.tensor_parallel: {settings.engine.tensor_parallel}: a proof's engines have one rank each")
    for share in settings.noise:
        stray_clicks(share)
    return settings.model_copy(update={"model": model, "encoder": encoder})


def ablation_models(folder: Path | None) -> Iterator[tuple[str, Path]]:
    """(name, model directory) of every model of an ablation. SettingsError: there is none."""
    if folder is None:
        return
    found = sorted(folder.glob("*/model"))
    if not found:
        raise SettingsError(f"ablation: {folder}: no NAME/model in it")
    yield from ((model.parent.name, model) for model in found)
