"""Which modules of a model are trained: what its directory says, what can be told without, and who asks."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.janus import save_janus
from support.models import save_small_model, small_model, small_prompter

from adgen.creatives.layout import new_run_id
from adgen.errors import ModelError
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.starter import write_starter_model
from adgen.model.checkpoint import load
from adgen.model.modules import MODULES_FILE, ModelFacts, module_of
from adgen.on_ray.benchmark.refresh import NullFinish
from adgen.on_ray.evaluation.model import refresh_settings as evaluation_settings
from adgen.on_ray.evaluation.settings import ModelEvaluationSettings
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.planning import open_model
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.shipped import shipped_model
from adgen.training.settings import TrainingSettings
from adgen.training.stages import check_start, make_task

NEW_OVER_JANUS = {
    "foreground.adapter",
    "foreground.adapter_mlp",
    "foreground.condition_layers",
    "foreground.condition_mlp",
    "preference.dual_modality_fusion_encoder",
    "preference.text_mask_generator",
    "preference.visual_mask_generator",
}


@pytest.fixture
def bare_janus(tmp_path):
    directory = tmp_path / "janus"
    save_janus(directory, tied=True)
    small_prompter(config=load(directory).config).save(directory)
    return directory


def without_facts(directory):
    save_small_model(directory)
    (directory / MODULES_FILE).unlink()
    return directory


def settings(model, **changes) -> RefreshSettings:
    return RefreshSettings(inputs="x", store="x", campaign="x", model=model, **changes)


def test_facts_change_no_digest(tmp_path):
    directory = without_facts(tmp_path)
    before = ModelDirectory(directory).digest
    ModelFacts(modules={"decoder": "untrained"}).save(directory)
    assert ModelDirectory(directory).digest == before
    (directory / "inner").mkdir()
    (directory / "inner" / MODULES_FILE).write_text("{}")  # a file of another name, so it counts
    assert ModelDirectory(directory).digest != before


def test_the_shipped_model_says_by_its_training_that_all_of_it_is_trained():
    assert set(ModelDirectory(shipped_model()).facts.modules.values()) == {"trained"}


def test_a_bare_janus_directory_lacks_what_is_new_over_it_and_is_refused(bare_janus):
    facts = ModelDirectory(bare_janus).facts
    assert set(facts.having("untrained")) == NEW_OVER_JANUS
    assert set(facts.having("trained")) == {"decoder", "image_tokenizer", "image_embedding", "image_head"}
    with pytest.raises(ModelError, match=r"untrained modules.*preference\.visual.*adgen convert.*jobs/pretrain\.py.*--allow"):
        open_model(settings(bare_janus))
    assert open_model(settings(bare_janus, allow_untrained=True)).is_janus


def test_a_directory_of_before_is_taken_with_a_warning_and_one_that_lacks_tensors_refused(tmp_path, caplog):
    directory = without_facts(tmp_path)
    with caplog.at_level(logging.WARNING):
        open_model(settings(directory))
    assert "no modules.json says whether these modules are trained: decoder, foreground.adapter," in caplog.text
    file = directory / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("text_mask_generator")}, file)
    assert ModelDirectory(directory).facts.having("untrained") == ["preference.text_mask_generator"]


def test_facts_decide_and_are_checked(tmp_path):
    save_small_model(tmp_path)
    assert not ModelDirectory(tmp_path).facts.having("untrained")
    ModelFacts(modules={"preference.text_mask_generator": "untrained"}).save(tmp_path)
    facts = ModelDirectory(tmp_path).facts
    assert (facts.having("untrained"), facts.having("trained")) == (["preference.text_mask_generator"], [])
    (tmp_path / MODULES_FILE).write_text('{"modules": {"decoder": "perhaps"}}')
    with pytest.raises(ModelError, match=r"modules\.json: modules\.decoder: .*perhaps"):
        _ = ModelDirectory(tmp_path).facts
    (tmp_path / MODULES_FILE).write_text("no")
    with pytest.raises(ModelError, match="not JSON"):
        _ = ModelDirectory(tmp_path).facts


def test_a_starter_model_is_untrained_and_may_be_trained(tmp_path):
    write_starter_model(tmp_path, ["red cup", "blue lamp"])
    assert set(ModelDirectory(tmp_path).facts.modules.values()) == {"untrained"}
    with pytest.raises(ModelError, match="untrained modules"):
        open_model(settings(tmp_path))
    check_start(tmp_path, TrainingSettings(stage="general"))


def test_an_evaluation_passes_on_that_untrained_modules_are_allowed(tmp_path):
    asked = ModelEvaluationSettings(inputs="x", out=tmp_path, allow_untrained=True)
    assert evaluation_settings(asked, tmp_path, "store", 0).allow_untrained
    assert not evaluation_settings(asked.model_copy(update={"allow_untrained": False}), tmp_path, "store", 0).allow_untrained


def test_each_row_of_an_untrained_model_says_so(tmp_path):
    pair = dict.fromkeys(("pair_id", "user_key", "product_id", "locale", "channel", "fingerprint", "title", "seconds"), "x")
    pair |= {"variant": 0, "attempt": 0, "seed": 1, "title_source": None, "picture_source": None, "seconds": 0.0, "reason": None}
    for untrained, said in (True, {"model": "warn: untrained"}), (False, {}):
        context = Context(
            settings(tmp_path).model_copy(update={"store": str(tmp_path)}), new_run_id(), "m", "s", untrained=untrained
        )
        finish = NullFinish(context)
        failed = finish.manifest_row(pair | {"reason": "no_cutout"}, {})
        made = finish.manifest_row(pair, {})
        assert (failed["status"], failed["gates"]) == ("failed", said)
        assert (made["status"], made["gates"].get("model")) == ("ok", said.get("model"))
        assert len(made["gates"]) > 1


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        ({"stage": "tokenizer"}, {"image_tokenizer"}),
        ({"stage": "general"}, {"decoder", "image_embedding", "image_head", *(n for n in NEW_OVER_JANUS if n.startswith("fore"))}),
        ({"stage": "personal", "trainable": {"preset": "released"}}, {"decoder", *NEW_OVER_JANUS}),
        ({"stage": "personal", "trainable": {"preset": "released", "freeze": ["preference."]}},
         {"decoder", *(n for n in NEW_OVER_JANUS if n.startswith("fore"))}),
    ],
)  # fmt: skip
def test_training_keeps_what_its_start_knows_and_says_what_it_trained(tmp_path, changes, trained):
    start = tmp_path / "start"
    save_small_model(start)
    facts = ModelFacts(modules={module_of(name): "untrained" for name in small_model().state_dict()})
    facts.save(start)
    (start / "sampling.json").write_text('{"guidance": 3.0}')
    config = json.loads((start / "adgen.json").read_text()) | {"history_order": "published"}
    (start / "adgen.json").write_text(json.dumps(config))
    (start / "prompt.toml").write_text((start / "prompt.toml").read_text().replace("Write", "Compose"))
    make_task(start, TrainingSettings(**changes)).export(tmp_path)
    made = ModelDirectory(tmp_path)
    assert (made.sampling, made.config.history_order) == ({"guidance": 3.0}, "published")
    assert made.prompter.template == ModelDirectory(start).prompter.template
    assert (tmp_path / "sampling.json").read_bytes() == (start / "sampling.json").read_bytes()
    assert set(made.facts.having("trained")) == trained
    assert set(made.facts.having("untrained")) == facts.modules.keys() - trained
    [stage] = made.facts.stages
    assert (stage.stage, set(stage.modules)) == (changes["stage"], trained)


def test_of_two_stages_both_are_said_and_the_second_finds_what_the_first_trained(bare_janus, tmp_path):
    (tmp_path / "general").mkdir()
    make_task(bare_janus, TrainingSettings(stage="general"), "random").export(tmp_path / "general")
    made = ModelDirectory(tmp_path / "general")
    assert {name.partition(".")[0] for name in made.facts.having("untrained")} == {"preference"}
    make_task(tmp_path / "general", TrainingSettings(stage="personal")).export(tmp_path)
    done = ModelDirectory(tmp_path).facts
    assert [stage.stage for stage in done.stages] == ["general", "personal"]
    assert set(done.modules.values()) == {"trained"}
    assert isinstance(load(tmp_path), torch.nn.Module)
