"""The ablation's variants differ in what their name says, and in nothing else."""

import pyarrow.parquet as pq
import pytest
import torch

from adgen.errors import SettingsError
from adgen.generation.starter import write_starter_model
from adgen.model.checkpoint import load
from adgen.on_ray.pretraining_ablation import VARIANTS, Ablation, follow_ablation, give_strangers, write_published_start
from adgen.shop.synth import synthesize


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    directory = tmp_path_factory.mktemp("start")
    write_starter_model(directory, ["Red cup, keeps tea warm", "蓝色杯子"])
    return directory


def test_every_variant_has_the_same_budget():
    runs = {name: Ablation().run(name) for name in VARIANTS}
    assert len({run.out for run in runs.values()}) == len(VARIANTS)
    for name, run in runs.items():
        same = Ablation().run("residual")
        assert (run.steps, run.batch, run.optimizer, run.losses, run.seed) == (
            same.steps,
            same.batch,
            same.optimizer,
            same.losses,
            same.seed,
        )
        assert (run.dropout.history == 1) == (name == "no_history")
        assert ("preference." in run.trainable.freeze) == (name == "coarse_only")
        assert (run.inputs == same.inputs) == (name != "random_history")
        assert (run.model == same.model) == (name != "published")


def test_nobody_keeps_their_own_history(tmp_path):
    synthesize(tmp_path / "shop", 7, 12, num_references=7, picture_side=16)
    give_strangers(tmp_path / "shop", tmp_path / "strangers", seed=3)
    before, after = (pq.read_table(tmp_path / name / "histories.parquet").to_pylist() for name in ("shop", "strangers"))
    owner = {str(row["clicks"]): row["user_id"] for row in before}
    assert {row["user_id"] for row in after} == {row["user_id"] for row in before}
    assert all(owner[str(row["clicks"])] != row["user_id"] for row in after)
    assert pq.read_table(tmp_path / "strangers" / "references.parquet") == pq.read_table(tmp_path / "shop" / "references.parquet")
    picture = pq.read_table(tmp_path / "shop" / "products.parquet")["image"][0].as_py()
    assert (tmp_path / "strangers" / picture).read_bytes() == (tmp_path / "shop" / picture).read_bytes()


def test_the_published_form_starts_with_the_same_decoder_and_a_new_fine_step(start, tmp_path):
    write_published_start(start, tmp_path / "published", seed=0)
    plain, published = load(start), load(tmp_path / "published")
    assert plain.config.preference.residual
    assert not published.config.preference.residual
    for name, tensor in plain.decoder.state_dict().items():
        assert torch.equal(tensor, published.decoder.state_dict()[name]), name
    assert published.preference.dual_modality_fusion_encoder.output_proj.weight.abs().sum() > 0


def test_an_unknown_variant_is_refused_by_name():
    with pytest.raises(SettingsError, match=r"no_masks.*known are no_history"):
        follow_ablation(Ablation(variants=("no_masks",)), None)
