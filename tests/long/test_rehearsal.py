"""From Janus-Pro weights to pulled creatives: docs/models.md's rehearsal."""

import json

import pytest
from support.progress import Silent
from support.rehearsal import SHORT, converted, published, trained

from adgen.errors import ModelError
from adgen.on_ray.evaluation.model import evaluate_model
from adgen.on_ray.evaluation.settings import ModelEvaluationSettings


@pytest.mark.timeout(900)
def test_the_whole_way_from_janus_weights_to_pulled_creatives(ray_cluster, tmp_path):
    stages = [
        {"stage": "general"},
        {"stage": "personal", "trainable": {"preset": "released"}, "workers": {"engine": "deepspeed", "zero_stage": 2}},
    ]
    start = converted(tmp_path)
    general, personal = trained(tmp_path, start, stages)
    assert {name.partition(".")[0] for name in general.facts.having("untrained")} == {"preference"}
    with pytest.raises(ModelError, match="untrained modules"):
        general.require_trained()
    assert set(personal.facts.modules.values()) == {"trained"}
    assert [stage.stage for stage in personal.facts.stages] == ["general", "personal"]
    assert personal.sampling == {"guidance": 3.0, "max_title_tokens": 8}
    published(tmp_path, personal.path)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("preset", "zero_stage"), [("released", 2), ("released", 3), ("full", 2), ("full", 3)])
def test_each_preset_under_each_zero_stage_leads_to_an_evaluated_model(ray_cluster, tmp_path, preset, zero_stage):
    workers = {"engine": "deepspeed", "zero_stage": zero_stage}
    stages = [{"stage": stage, "trainable": {"preset": preset}, "workers": workers} for stage in ("general", "personal")]
    *_, model = trained(tmp_path, converted(tmp_path), stages)
    assert set(model.facts.modules.values()) == {"trained"}
    published(tmp_path, model.path)
    asked = ModelEvaluationSettings(
        inputs=str(tmp_path / "shop"), model=model.path, out=tmp_path / "evaluation", limit=2, device="cpu",
        sampling=SHORT, engine={"deepspeed": False, "num_slots": 2}, resamples=100,
    )  # fmt: skip
    record = evaluate_model(asked, Silent())
    assert record["model_digest"]
    assert json.loads((tmp_path / "evaluation" / "summary.json").read_text())["run_id"] == record["run_id"]
