"""The coarse step: a keyed draw in which no click feels another."""

import math

import pytest

from adgen.shop.history import draw, filled, published_draw, published_order, selection_weight

CLICKS = [f"p{i}" for i in range(12)]
SIMILARITIES = [0.05 * (i + 1) for i in range(12)]


def test_the_draw_is_a_function_of_the_pair():
    assert draw("pair", CLICKS, SIMILARITIES, 5) == draw("pair", CLICKS, SIMILARITIES, 5)
    assert len({tuple(draw(f"pair{i}", CLICKS, SIMILARITIES, 5)) for i in range(20)}) > 10


def test_without_replacement_and_at_most_k():
    for k in (0, 1, 5, 12, 30):
        drawn = draw("pair", CLICKS, SIMILARITIES, k)
        assert len(drawn) == len(set(drawn)) == min(k, 12)


def test_a_click_that_is_not_drawn_changes_nothing():
    drawn = draw("pair", CLICKS, SIMILARITIES, 4)
    for left_out in set(range(12)) - set(drawn):
        clicks = CLICKS[:left_out] + CLICKS[left_out + 1 :]
        similarities = SIMILARITIES[:left_out] + SIMILARITIES[left_out + 1 :]
        again = draw("pair", clicks, similarities, 4)
        assert [clicks[i] for i in again] == [CLICKS[i] for i in drawn]


def test_the_order_of_clicks_changes_nothing():
    drawn = [CLICKS[i] for i in draw("pair", CLICKS, SIMILARITIES, 5)]
    assert [CLICKS[::-1][i] for i in draw("pair", CLICKS[::-1], SIMILARITIES[::-1], 5)] == drawn


def test_never_the_target_itself():
    for i in range(200):
        assert 3 not in draw(f"pair{i}", CLICKS, SIMILARITIES, 11, target="p3")
        titles = ["same" if j in (4, 5) else str(j) for j in range(12)]
        assert not {4, 5} & set(draw(f"pair{i}", CLICKS, SIMILARITIES, 12, target_title="same", titles=titles))
    assert draw("pair", ["p3"], [1.0], 10, target="p3") == []


def test_no_history_draws_nothing():
    assert draw("pair", [], [], 10) == []


def test_a_product_clicked_twice_counts_once_at_its_newest_place():
    assert draw("pair", ["a", "b", "a"], [0.5, 0.5, 0.5], 10, target="b") == [2]


def test_a_similar_click_is_drawn_more_often():
    clicks, similarities = ["a", "b", "c"], [0.8, 0.4, 0.1]
    first = [draw(f"pair{i}", clicks, similarities, 1)[0] for i in range(3000)]
    share = [first.count(i) / 3000 for i in range(3)]
    expected = [s / sum(similarities) for s in similarities]
    assert all(math.isclose(a, b, abs_tol=0.03) for a, b in zip(share, expected, strict=True))


@pytest.mark.parametrize("similarity", [-1.0, 0.0, math.nan, -0.0])
def test_no_click_is_without_a_chance(similarity):
    assert selection_weight(similarity) == 0.0005


def test_similarity_is_rounded_so_that_devices_agree():
    assert selection_weight(0.12349999) == selection_weight(0.1234) == pytest.approx(0.123)


def test_unequal_lists_are_refused():
    with pytest.raises(ValueError, match="12 clicks, 2 similarities"):
        draw("pair", CLICKS, [1, 2], 3)


def test_published_order_of_no_history_is_empty():
    assert published_order([], [], 10) == []


def test_a_short_history_is_repeated_in_the_order_of_the_draw():
    assert filled(["b", "a"], 5) == ["b", "a", "b", "a", "b"]
    assert filled(["a"], 3) == ["a"] * 3
    assert filled([], 6) == []
    assert filled("abcd", 3) == list("abcd")


@pytest.mark.parametrize("clicks", range(9))
def test_the_published_draw_fills_where_the_published_order_raises(clicks):
    titles, close = [f"t{i}" for i in range(clicks)], [0.1 * (i + 1) for i in range(clicks)]
    drawn = published_draw(titles, close, 6)
    assert len(drawn) == (6 if clicks else 0)
    if 0 < clicks < 6:
        assert drawn[:clicks] == list(range(clicks))
    if clicks < 3:
        assert drawn == filled(range(clicks), 6)
    else:
        assert drawn == published_order(titles, close, 6)
