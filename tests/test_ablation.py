"""The ablation's variants differ in what their name says, and in nothing else."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from support.examples import example

from adgen.config import load_settings
from adgen.errors import SettingsError
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.starter import write_starter_model
from adgen.model.checkpoint import load, save
from adgen.on_ray.training.ablation import VARIANTS, Ablation, check_plain, run_ablation, shuffle_histories, write_start
from adgen.shop.synthetic.synth import synthesize
from adgen.training.batches import LanguageCollator
from adgen.training.settings import TrainingSettings
from adgen.training.stages import make_task

ROOT = Path(__file__).parent.parent
WITHOUT_STYLE = {"coarse_only", "published", "residual"}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    directory = tmp_path_factory.mktemp("start")
    write_starter_model(directory, ["Red cup, keeps tea warm", "蓝色杯子"])
    return directory


def test_every_variant_has_the_same_budget():
    recorded = load_settings(Ablation, ROOT / "jobs" / "train_ablation.toml")
    runs = {name: recorded.run(name) for name in VARIANTS}
    assert len({run.out for run in runs.values()}) == len(VARIANTS)
    for name, run in runs.items():
        same = runs["style_embedding"]
        assert (run.steps, run.batch, run.optimizer, run.seed) == (same.steps, same.batch, same.optimizer, same.seed)
        assert run.losses.model_copy(update={"clicks": 1.0}) == same.losses
        assert (run.losses.clicks == 0) == (name in WITHOUT_STYLE | {"no_clicks_loss"})
        assert (run.dropout.history == 1) == (name == "no_history")
        assert ("preference." in run.trainable.freeze) == (name == "coarse_only")
        assert (run.inputs == same.inputs) == (name != "random_history")
        assert (run.model == same.model) == (name not in WITHOUT_STYLE | {"untrained_encoder", "no_clicks_loss"})
    assert runs["coarse_only"].model == runs["residual"].model != runs["published"].model
    assert (
        runs["untrained_encoder"].model == runs["no_clicks_loss"].model not in {run.model for run in map(runs.get, WITHOUT_STYLE)}
    )


def test_every_user_has_another_users_history(tmp_path):
    synthesize(tmp_path / "shop", 7, 12, num_references=7, picture_side=16)
    shuffle_histories(tmp_path / "shop", tmp_path / "other_users", seed=3)
    before, after = (pq.read_table(tmp_path / name / "histories.parquet").to_pylist() for name in ("shop", "other_users"))
    owner = {str(row["clicks"]): row["user_id"] for row in before}
    assert {row["user_id"] for row in after} == {row["user_id"] for row in before}
    assert all(owner[str(row["clicks"])] != row["user_id"] for row in after)
    assert pq.read_table(tmp_path / "other_users" / "references.parquet") == pq.read_table(tmp_path / "shop" / "references.parquet")
    picture = pq.read_table(tmp_path / "shop" / "products.parquet")["image"][0].as_py()
    assert (tmp_path / "other_users" / picture).read_bytes() == (tmp_path / "shop" / picture).read_bytes()


def test_the_published_form_starts_with_the_same_decoder_and_a_new_fine_step(start, tmp_path):
    write_start(start, tmp_path / "published", 0, "published")
    plain, published = load(start), load(tmp_path / "published")
    assert published.preference.style_encoder is None
    assert plain.config.preference.residual
    assert not published.config.preference.residual
    for name, tensor in plain.decoder.state_dict().items():
        assert torch.equal(tensor, published.decoder.state_dict()[name]), name
    assert published.preference.dual_modality_fusion_encoder.output_proj.weight.abs().sum() > 0


def test_the_residual_form_starts_as_the_start_without_its_style_encoder(start, tmp_path):
    write_start(start, tmp_path / "residual", 0, "residual")
    whole, residual = load(start).state_dict(), load(tmp_path / "residual").state_dict()
    assert {name for name in whole if name not in residual} == {name for name in whole if ".style_encoder." in name}
    for name, tensor in residual.items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.slow
def test_an_untrained_encoder_replaces_the_starts(start, tmp_path):
    taught = load(start)
    for parameter in taught.preference.style_encoder.parameters():
        parameter.data += 1.0
    taught.preference.visual_mask_generator.base_transformer.pos_encoding.data += 1.0
    save(taught, tmp_path / "taught")
    ModelDirectory(start).prompter.save(tmp_path / "taught")
    write_start(tmp_path / "taught", tmp_path / "fresh", 0, "fresh")
    taught, fresh = load(tmp_path / "taught"), load(tmp_path / "fresh")
    assert fresh.config == taught.config
    assert not fresh.preference.style_encoder.output_proj.weight.any()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, taught.state_dict()[name]) == (".style_encoder." not in name), name


def test_a_start_or_seed_that_changed_is_noticed(start, tmp_path):
    write_start(start, tmp_path / "published", 0, "published")
    write_start(start, tmp_path / "published", 0, "published")
    for seed, form in ((1, "published"), (0, "residual")):
        with pytest.raises(SettingsError, match="another start, shop or seed"):
            write_start(start, tmp_path / "published", seed, form)
    synthesize(tmp_path / "shop", 7, 12, num_references=7, picture_side=16)
    shuffle_histories(tmp_path / "shop", tmp_path / "other_users", seed=3)
    with pytest.raises(SettingsError, match="another start, shop or seed"):
        shuffle_histories(tmp_path / "shop", tmp_path / "other_users", seed=4)


@pytest.mark.slow
def test_a_trained_or_a_published_start_is_refused(start, tmp_path):
    check_plain(start)
    write_start(start, tmp_path / "published", 0, "published")
    with pytest.raises(SettingsError, match="no residual"):
        check_plain(tmp_path / "published")
    write_start(start, tmp_path / "residual", 0, "residual")
    with pytest.raises(SettingsError, match="no style encoder"):
        check_plain(tmp_path / "residual")
    model = load(start)
    model.preference.style_encoder.output_proj.weight.data[0, 0] = 1.0  # the general stage may have taught it
    save(model, tmp_path / "reading")
    check_plain(tmp_path / "reading")
    model.preference.dual_modality_fusion_encoder.output_proj.weight.data[0, 0] = 1.0
    save(model, tmp_path / "fusing")
    with pytest.raises(SettingsError, match="trained already"):
        check_plain(tmp_path / "fusing")


def test_coarse_only_reads_the_raw_history(start):
    settings = TrainingSettings(stage="personal", trainable={"freeze": ("preference.",)})
    model = make_task(start, settings).model
    assert not any(parameter.requires_grad for parameter in model.preference.parameters())
    codes = torch.randint(0, 100, (1, 2, 16))
    rows = model.embed_history(codes, torch.randint(0, 100, (1, 2, 16)))[0]
    assert torch.equal(rows, model.image_embedding(codes).flatten(1, 2))


def test_a_model_without_history_is_held_out_without(start):
    settings = TrainingSettings(stage="personal", dropout={"history": 1.0})
    collator = LanguageCollator(ModelDirectory(start).prompter, load(start).config, settings)
    assert collator([example(0, load(start).config)], None)["num_items"].tolist() == [0]


@torch.no_grad()
def test_image_tokens_start_as_long_as_words(start):
    model = load(start)
    pictures = model.image_embedding(torch.arange(model.config.image.codebook_size)).norm(dim=-1).mean()
    assert float(pictures) == pytest.approx(float(model.decoder.embed_tokens.weight.norm(dim=-1).mean()), rel=0.1)
    heads, rows = model.decoder.lm_head.weight, model.decoder.embed_tokens.weight
    assert torch.allclose(heads[:, 1:], 0.5 * rows[:, 1:])  # the first number of a row is a constant that no head says
    assert not heads[:, 0].any()


def test_an_unknown_variant_is_refused_by_name():
    with pytest.raises(SettingsError, match=r"no_masks.*known are no_history"):
        run_ablation(Ablation(variants=("no_masks",)), None)


def test_names_of_before_are_read(tmp_path, caplog):
    """An ablation that an earlier version began goes on in its folders."""
    asked = Ablation(variants=("taste", "residual"), out=str(tmp_path))
    assert asked.variants == ("style_embedding", "residual")
    assert "taste is called style_embedding" in caplog.text
    assert asked.run("style_embedding").out == f"{tmp_path}/style_embedding"
    (tmp_path / "taste").mkdir()
    assert asked.run("style_embedding").out == f"{tmp_path}/taste"


def test_a_variant_that_is_gone_is_refused_with_its_version():
    with pytest.raises(ValueError, match=r"no_outlook was removed in version 0\.2\.0"):
        Ablation(variants=("no_history", "no_outlook"))
