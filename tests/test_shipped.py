"""The model in the package: small, whole, quick to load, and able to make a creative."""

import json

import torch

from adgen.evaluation.pbs import load_pbs
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import Request
from adgen.generation.prompt import Prompter
from adgen.generation.sampling_settings import SamplingChoice
from adgen.model.checkpoint import load
from adgen.shipped import shipped_encoder, shipped_model

TITLE, POINTS = "Plain red steel mug, keeps tea warm", ("keeps tea warm", "holds for years", "a gift with charm")


def test_the_package_holds_a_model_of_at_most_20_megabytes():
    folder = shipped_model().parent
    assert folder == shipped_encoder().parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 20e6
    assert (folder / "MODEL_CARD.md").exists()


def test_its_training_facts_tell_every_stage_and_no_place():
    facts = json.loads((shipped_model() / "training.json").read_text(encoding="utf-8"))
    assert (facts["stage"], facts["after"]["stage"], facts["after"]["after"]["stage"]) == ("personal", "general", "tokenizer")
    assert "/" not in json.dumps([facts["settings"], facts["after"]["settings"]])


def test_it_writes_a_title_and_paints_what_its_history_says():
    model = load(shipped_model(), dtype=torch.float32)
    engine = Engine(
        model, Prompter.load(shipped_model(), model.config), EngineSettings(num_slots=2), SamplingChoice().of(shipped_model())
    )
    size = model.config.image.tokens_per_history_picture
    histories = [torch.full((6, size), code) for code in (3, 400)]
    requests = [Request(TITLE, 7, POINTS, ("Plain blue mug",) * 6, codes) for codes in histories]
    first, second = engine.generate(requests)
    assert first.title
    assert first.picture.shape == (64, 64, 3)
    assert not torch.equal(first.picture, second.picture), "the history moves the picture"
    assert load_pbs(shipped_encoder()).config.image_size == 64
