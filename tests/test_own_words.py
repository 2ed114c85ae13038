"""adgen/generation/own_words.py: what a title that is drawn again may say."""

import random
import re
from dataclasses import replace

import pytest
import torch
from support.engine import SAMPLED, assert_same, requests
from support.models import small_model, small_prompter

from adgen.finishing.wording import product_wording
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import title_ended
from adgen.generation.own_words import OwnWords
from adgen.generation.prompt import Prompter
from adgen.shipped import shipped_model


@pytest.fixture(scope="module")
def prompter() -> Prompter:
    from adgen.generation.model_directory import ModelDirectory

    return ModelDirectory(shipped_model()).prompter


def allowed(words: OwnWords, prompter: Prompter) -> list[int]:
    return (words.bias(prompter.config.decoder.vocab_size) == 0).nonzero()[:, 0].tolist()


def wander(prompter: Prompter, texts: tuple[str, ...], seed: int, longest: int = 400) -> str:
    """A title of random allowed tokens."""
    rng, words, written = random.Random(seed), OwnWords(prompter, texts), []
    while len(written) < longest:
        written.append(rng.choice(allowed(words, prompter)))
        words.read(written[-1])
        if title_ended(prompter, written):
            return prompter.read_title(written)
    raise AssertionError(f"never closed: {prompter.read_title([*written, *prompter.title_close_ids])!r}")


TEXTS = [
    ("Plain red steel mug", "keeps tea warm", "holds for years"),
    ("Strygrønnuf glass 63mAh, 280 g/m²", "11-in-1 (water flat)", "UPF 50+"),
    ("摧毁良好交易", "新款上市，品质保证", "纯棉"),
    ("𝔘nicode 👍🏽 mug", "wearer's 1,500.5 ml"),
    ("book bookcase booking",),
    ("a",),
    ("(whou), flexible wildcard", 'apart "nnooj" flexible'),
]


@pytest.mark.parametrize("texts", TEXTS, ids=lambda texts: texts[0])
def test_whatever_is_drawn_says_only_words_of_the_products_texts(prompter, texts):
    """Words of another spelling, glued ones and cut ones are never said, however unlikely the draw."""
    wording = product_wording(texts)
    titles = [wander(prompter, texts, seed) for seed in range(40)]
    assert all(titles)
    assert {title: unknown for title in titles if (unknown := wording.coverage(title)[1])} == {}
    if len(" ".join(texts).split()) > 1:
        assert len(set(titles)) > 5, "and nothing but chance chose them"


@pytest.mark.parametrize("texts", TEXTS, ids=lambda texts: texts[0])
@pytest.mark.parametrize("order", [1, -1])
def test_every_text_and_the_usual_title_can_be_written(prompter, texts, order):
    """The product's title, a colon, its points with commas between them."""
    title, *points = texts[::order]
    joined = f"{title}: {', '.join(points)}" if points and all(map(str.isascii, texts)) else title
    if any(mark in joined for mark in "👍，") or "(water flat)" in joined:
        pytest.skip("has marks that no title needs")
    words = OwnWords(prompter, texts)
    for token in [*prompter.text_ids(joined), *prompter.title_close_ids]:
        assert token in allowed(words, prompter), joined
        words.read(token)


def test_no_word_is_said_more_often_than_the_texts_say_it_so_that_a_title_ends(prompter):
    """However much the model would like to go in circles: it never closes a title that it need not close."""
    texts = ("Plain red steel mug, keeps red", "red 12 cm", "(whou) book bookcase")
    words, written, close = OwnWords(prompter, texts), [], prompter.title_close_ids[0]
    rng = random.Random(3)
    while not (written and title_ended(prompter, written)):
        may = allowed(words, prompter)
        written.append(rng.choice([token for token in may if token != close] or may))
        words.read(written[-1])
        assert len(written) < 100
    said = re.findall(r"\w+", prompter.read_title(written).lower())
    assert sorted(said) == sorted(re.findall(r"\w+", " ".join(texts).lower()))


def test_without_a_word_everything_is_allowed(prompter):
    assert len(allowed(OwnWords(prompter, ("", " , ")), prompter)) == prompter.config.decoder.vocab_size


def test_only_titles_that_are_drawn_again_are_held_to_their_words_and_neighbours_stay_as_they_are():
    """With random weights, whose free titles are noise."""
    sampling = SAMPLED.model_copy(update={"retry_own_words": True, "max_title_tokens": 90, "attempts": 9})
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=2), sampling)
    plain = engine.generate(requests()[:2])
    wording = product_wording(("fresh mug", "steel", "warm"))
    check = lambda title: None if title and wording.coverage(title)[0] == 1 else "other words"  # noqa: E731
    assert check(plain[0].title) is not None
    made = engine.generate([replace(requests()[0], check_title=check), requests()[1]])
    assert (check(made[0].title), made[0].is_template) == (None, False)
    assert made[0].title_attempt > 0
    assert_same(made[1:], plain[1:])
    free = sampling.model_copy(update={"retry_own_words": False})
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=2), free)
    [noise, _] = engine.generate([replace(requests()[0], check_title=check), requests()[1]])
    assert check(noise.title) is not None
    assert torch.equal(engine.generate(requests()[:2])[0].codes, plain[0].codes), "a first draw is as it was"
