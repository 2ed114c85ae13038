"""Shops of many styles, photographs, any words and few clicks: what a model learns from to read what it is shown."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.examples import example
from support.models import small_config, small_model, small_prompter

from adgen.errors import InputError, SettingsError
from adgen.evaluation.titles.scores import ProductTexts, title_scores
from adgen.model.modules import module_of
from adgen.shop.synthetic.drawing.families import draw_family, family
from adgen.shop.synthetic.grammar import listed_words
from adgen.shop.synthetic.open_words import _lists as listed
from adgen.shop.synthetic.open_words import open_words
from adgen.shop.synthetic.styles import StyleSet, style_set
from adgen.shop.synthetic.synth import synthesize
from adgen.training.batches import LanguageCollator
from adgen.training.language import LanguageTask
from adgen.training.settings import TrainingSettings
from adgen.training.task import trained_modules
from adgen.training.trainable import choose_trainable


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Twelve classes of three backgrounds, twelve cut-outs: flat colours, which is all that these tests ask of a photograph."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(12):
        place = folder / "backgrounds" / f"class-{number}"
        place.mkdir(parents=True)
        for picture in range(3):
            Image.new("RGB", (40, 30), (20 * number, 10 * picture, 90)).save(place / f"{picture}.png")
        cutout = Image.new("RGBA", (20, 30))
        cutout.paste((200, 20 * number, 0, 255), (4, 4, 16, 26))
        (folder / "cutouts").mkdir(exist_ok=True)
        cutout.save(folder / "cutouts" / f"{number}.png")
    rows = [{"cutout": f"cutouts/{number}.png", "kind": "coat"} for number in range(12)]
    (folder / "products.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def rows(folder: Path, table: str) -> list[dict]:
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


# -- styles ---------------------------------------------------------------------------------------------------------------


def test_pictures_of_one_family_are_nearer_to_each_other_than_to_other_families():
    seeds = range(12)
    means = np.array(
        [[draw_family(family(seed), np.random.default_rng([seed, n])).mean((0, 1)) for n in range(3)] for seed in seeds]
    )
    inside = np.linalg.norm(means - means.mean(1, keepdims=True), axis=-1).mean()
    between = np.linalg.norm(means.mean(1) - means.mean((0, 1)), axis=-1).mean()
    assert inside < between / 3


def test_training_and_proof_share_no_style_class_or_cutout(photographs):
    kept = [StyleSet(("many",), 5, photographs, split) for split in ("train", "eval")]
    assert all(shown.classes and shown.cutouts for shown in kept)
    for name in ("names", "classes", "cutouts"):
        train, proof = (set(getattr(shown, name)) for shown in kept)
        assert not train & proof
    assert len(kept[0].classes) + len(kept[1].classes) == 12


def test_a_shop_of_photographs_shows_photographs_alone(photographs, tmp_path):
    shown = style_set((), 0, photographs, "train")
    synthesize(tmp_path, 6, 20, num_references=6, picture_side=32, split="train", styles=shown, clicks=(0, 3))
    assert {row["category"] for row in rows(tmp_path, "products")} == {"coat"}
    assert {style for row in rows(tmp_path, "styles") for style in row["styles"]} <= {f"photo-{name}" for name in shown.classes}
    assert {len(row["clicks"]) for row in rows(tmp_path, "histories")} <= {0, 1, 2, 3}


def test_users_of_few_clicks_have_some_in_their_style(photographs, tmp_path):
    synthesize(
        tmp_path, 30, 60, num_pairs=30, num_references=0, picture_side=16, styles=style_set(("many",), 6, None, None), clicks=(1, 2)
    )
    known = {row["id"]: set(row["styles"]) for row in rows(tmp_path, "styles")}
    for row in rows(tmp_path, "histories"):
        assert any(known[click["product_id"]] & known[row["user_id"]] for click in row["clicks"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clicks": (3, 99)}, "clicks: expected two numbers from 0 to 24"),
        ({"clicks": (5, 2)}, "clicks: expected two numbers"),
        ({"words": "french"}, "words: expected one of shop, mixed, open"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, wrong, message):
    with pytest.raises(SettingsError, match=message):
        synthesize(tmp_path, 2, 4, **wrong)


def test_photographs_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"photographs: .*/backgrounds: no such folder"):
        style_set(("ten",), 0, tmp_path, None)
    (tmp_path / "backgrounds").mkdir()
    with pytest.raises(InputError, match="at least five classes"):
        _ = style_set(("ten",), 0, tmp_path, "eval").names


# -- words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reference_titles_of_any_words_say_their_product_and_nothing_else():
    for number in range(150):
        locale = "zh" if number % 2 else "en"
        words = open_words("train", locale, np.random.default_rng(number))
        (title,) = words.creative_titles(0)
        scores = title_scores(title, [], ProductTexts(words.title(number), words.points, None, locale))
        assert scores["allowed_words"] == 1, (title, words)
        assert scores.get("number_unit_agreement", 1) == 1, (title, words)
        assert scores.get("selling_point_coverage", 1) == 1, (title, words)


def test_two_products_of_any_words_seldom_share_a_title():
    made = {open_words(None, "en", np.random.default_rng(number)).head for number in range(300)}
    assert len(made) > 295


# -- training ---------------------------------------------------------------------------------------------------------------


def test_every_word_of_the_grammar_is_shown_among_any_words_in_training_and_none_in_the_proof():
    """The grammar shows them in training; a model that never saw them among other words does not copy them there."""
    lists = {split: {word for words in listed(split).values() for word in words} for split in ("train", "eval")}
    assert set(listed_words()) <= lists["train"]
    assert not lists["train"] & lists["eval"], "nor any other listed word"
    assert min(len(words) for name, words in listed("eval").items() if name != "shop") > 300
    titles = " ".join(open_words("train", "en", np.random.default_rng(seed)).title(0) for seed in range(2500)).lower()
    said = set(re.findall("[a-z]+", titles))
    assert len(set(listed_words()) & said) > 0.8 * len(set(listed_words()))


def test_words_are_drawn_anew_at_each_reading_and_the_same_for_the_same():
    config, settings = small_config(), TrainingSettings(stage="general", open_words=1.0)
    collator, row = LanguageCollator(small_prompter(), config, settings), example(0, config)
    first, again, later = (collator.sample(row, epoch) for epoch in (0, 0, 1))
    assert first.facts == again.facts != later.facts
    assert collator.sample(row, None).facts.product_title == row["product_title"], "held-out losses are of the shop's own words"
    shop_words = LanguageCollator(small_prompter(), config, settings.model_copy(update={"open_words": 0.0}))
    assert shop_words.sample(row, 0).facts.product_title == row["product_title"]


def test_titles_alone_have_the_loss_that_they_have_beside_pictures():
    model, prompter = small_model(), small_prompter()
    batches, losses = {}, {}
    for image in (0.0, 1.0):
        settings = TrainingSettings(stage="general", losses={"image": image})
        batches[image] = LanguageCollator(prompter, model.config, settings)([example(n, model.config) for n in range(3)], None)
        losses[image] = LanguageTask(model, prompter, settings).eval()(batches[image])[1]
    assert set(losses[0.0]) == {"text"}
    torch.testing.assert_close(losses[0.0]["text"], losses[1.0]["text"])


@pytest.mark.parametrize("stage", ["general", "personal"])
def test_training_titles_alone_calls_no_module_trained_that_no_loss_reaches(stage):
    model, prompter = small_model(), small_prompter()
    settings = TrainingSettings(stage=stage, losses={"image": 0.0})
    choose_trainable(model, stage, settings.trainable, settings.seed)
    task = LanguageTask(model, prompter, settings).train()
    batch = LanguageCollator(prompter, model.config, settings)([example(n, model.config) for n in range(3)], None)
    task(batch)[0].backward()
    reached = {module_of(name) for name, tensor in model.named_parameters() if tensor.grad is not None and tensor.grad.any()}
    said = trained_modules(model) - task.unreached()
    assert {"foreground.adapter", "image_head"} <= task.unreached()
    assert said == reached
