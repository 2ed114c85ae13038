"""Hashed n-gram similarity: stable everywhere, sensible in English and Chinese, exact where it is rounded."""

import hashlib

import numpy as np
from support.processes import python

from adgen.shop.similarity import EMBEDDING_SIZE, cosines, embed_titles

TITLES = ["Red steel lamp, warm", "red STEEL  lamp", "红色茶杯 新款", "红色茶杯", "Blue cotton shirt", "🎉🎁", "مصباح أحمر", ""]
# Recorded once. A change means that all catalogs must embed again: change EMBEDDING_NAME with it.
RECORDED = "88ef790bb0db59df"


def similarity(left: str, right: str) -> float:
    return float(cosines(embed_titles([left, right]).astype(np.float16), np.array([0]), np.array([1]))[0])


def test_the_embedding_is_the_recorded_one():
    assert hashlib.sha256(embed_titles(TITLES).astype("<f2").tobytes()).hexdigest()[:16] == RECORDED


def test_the_embedding_is_the_same_in_another_process():
    code = "import hashlib; from adgen.shop.similarity import embed_titles\n"
    code += f"print(hashlib.sha256(embed_titles({TITLES!r}).astype('<f2').tobytes()).hexdigest()[:16])"
    assert python(code, PYTHONHASHSEED="5").stdout.strip() == RECORDED


def test_a_title_does_not_depend_on_its_neighbours_nor_on_the_batch():
    alone = np.concatenate([embed_titles([title]) for title in TITLES])
    assert np.array_equal(embed_titles(TITLES), alone)
    many = embed_titles(TITLES * 600)
    assert np.array_equal(many[-len(TITLES) :], alone)


def test_shape_length_and_the_empty_title():
    found = embed_titles([*TITLES, None, " \n"])
    assert (found.shape, found.dtype) == ((len(TITLES) + 2, EMBEDDING_SIZE), np.float32)
    assert np.allclose(np.linalg.norm(found[:7], axis=1), 1, atol=2e-3)
    assert not found[7:].any()
    assert embed_titles([]).shape == (0, EMBEDDING_SIZE)


def test_like_titles_are_similar_and_others_are_not():
    assert similarity("Red steel lamp", "ＲＥＤ   steel LAMP") == 1.0
    assert similarity("Red steel lamp, warm", "red steel lamp") > 0.5
    assert similarity("红色茶杯 新款", "红色茶杯") > 0.5
    assert abs(similarity("Red steel lamp", "Blue cotton shirt")) < 0.25
    assert abs(similarity("红色茶杯", "Blue cotton shirt")) < 0.25


def test_long_titles_and_half_a_surrogate_are_embedded():
    assert similarity("mug " * 2500, "mug") > 0.5
    assert embed_titles(["half \ud83c"]).any()


def test_cosines_are_exact_whatever_the_batch_and_the_order():
    embeddings = embed_titles([f"{title} {n}" for n in range(700) for title in TITLES]).astype(np.float16)
    left, right = np.divmod(np.arange(9000), 95)
    whole = cosines(embeddings, left, right)
    single = [float(np.round(sum(a * b for a, b in zip(x[::-1], y[::-1], strict=True)), 3)) for x, y in
              zip(embeddings[left[:200]].astype(float), embeddings[right[:200]].astype(float), strict=True)]  # fmt: skip
    assert whole[:200].tolist() == single
    assert np.array_equal(whole, np.round(whole, 3))
