"""The recorded recipe of the model in the package: its stages, its shop, and what it ships."""

from pathlib import Path

import torch

from adgen.config import load_settings
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.prompt import Prompter
from adgen.generation.sampling_settings import SamplingChoice, SamplingSettings
from adgen.generation.starter import write_starter_model
from adgen.model.checkpoint import load
from adgen.model.pbs import load_pbs
from adgen.on_ray.training.recipe import Recipe, ShopSettings, draw_shop, ship
from adgen.on_ray.training.settings import PretrainSettings
from adgen.training.settings import TrainingSettings
from adgen.training.stages import make_task

ROOT = Path(__file__).parents[1]
SAME = 2e-4  # relative: what fp32 sums in another order come to after 20 steps


def test_titles_are_learned_alone_and_products_seen_first_afterwards():
    assert [run.out for run in Recipe().runs()] == [f"runs/tiny/{name}" for name in ("tokenizer", "general", "personal", "pbs")]
    with_titles = Recipe(titles=PretrainSettings(stage="general", steps=7))
    _, titles, general, *_ = with_titles.runs()
    assert (titles.stage, titles.steps, titles.losses.image, titles.out) == ("general", 7, 0, "runs/tiny/titles")
    assert (general.model, general.dinov2) == ("runs/tiny/titles/model", "random")


def test_pbs_is_learned_on_the_styles_of_the_recipes_own_shop():
    shop = ShopSettings(styles=("ten", "many"), many=7, photographs=Path("photographs"))
    *_, pbs = Recipe(shop=shop, pbs=PretrainSettings(stage="pbs", contrast={"pool": 50})).runs()
    assert (pbs.contrast.styles, pbs.contrast.many, pbs.contrast.photographs) == (("ten", "many"), 7, Path("photographs"))
    assert pbs.contrast.pool == 50


def test_the_recipe_chains_its_stages(tmp_path):
    recipe = load_settings(Recipe, ROOT / "jobs" / "train_tiny.toml").model_copy(update={"out": str(tmp_path)})
    runs = list(recipe.runs())
    assert [run.stage for run in runs] == ["tokenizer", "general", "general", "personal", "pbs"]
    assert [run.model for run in runs] == ["tiny", *(f"{tmp_path}/{name}/model" for name in ("tokenizer", "titles", "general")), ""]
    assert {run.inputs for run in runs} == {f"{tmp_path}/shop"}
    assert {run.cache for run in runs} == {f"{tmp_path}/examples"}
    for run in runs:
        run.require()
        assert run.engine == "torch"
    assert recipe.shop.split == "train"


def test_a_finished_recipe_ships_its_model_in_bf16(tmp_path):
    recipe = Recipe(out=str(tmp_path / "runs"), sampling=SamplingChoice(title_temperature=0.5))
    write_starter_model(tmp_path / "runs" / "personal" / "model", ["red cup"])
    (tmp_path / "runs" / "personal" / "model" / "training.json").write_text("{}")
    make_task(None, TrainingSettings(stage="pbs")).export(tmp_path / "runs" / "pbs" / "model")
    ship(recipe, tmp_path / "tiny")
    model = load(tmp_path / "tiny" / "model")
    assert model.dtype == torch.bfloat16
    assert (tmp_path / "tiny" / "model" / "training.json").exists()
    Prompter.load(tmp_path / "tiny" / "model", model.config)
    load_pbs(tmp_path / "tiny" / "pbs")
    assert SamplingChoice().of(ModelDirectory(tmp_path / "tiny" / "model").sampling) == SamplingSettings(title_temperature=0.5)
    assert sum(file.stat().st_size for file in (tmp_path / "tiny").rglob("*")) < 40e6


def test_a_recipes_shop_is_drawn_once(tmp_path):
    settings = ShopSettings(users=2, products=3, references=4, picture_side=16)
    draw_shop(settings, tmp_path / "shop")
    before = (tmp_path / "shop" / "references.parquet").stat().st_mtime_ns
    draw_shop(settings, tmp_path / "shop")
    assert (tmp_path / "shop" / "references.parquet").stat().st_mtime_ns == before
    assert len(list((tmp_path / "shop" / "references").rglob("*.jpg"))) == 4
