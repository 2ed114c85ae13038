"""Intervals hold what they promise, differences are told from noise, and nothing is ever NaN."""

import json

import numpy as np
import pytest

from adgen.evaluation.statistics import ClusteredMeans, UserSizes

NAN = float("nan")


def users(count: int) -> list[str]:
    return [f"user {number}" for number in range(count)]


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, (400, 1))
    means = ClusteredMeans(["score"])
    means.add(users(400), values)
    found = means.estimates()["score"]
    error = values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.25 * error)


TRIALS = 2000


def sizes_of(shape: str, num_users: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of each user."""
    if shape == "balanced":
        return np.full(num_users, 5)
    if shape == "lognormal":
        return np.ceil(rng.lognormal(0.0, 1.0, num_users)).astype(int)
    return np.where(np.arange(num_users) % 5 == 0, 30, 1)  # one in five


@pytest.mark.parametrize("agreement", [0.0, 1.0])
@pytest.mark.parametrize("num_users", [10, 30, 100])
@pytest.mark.parametrize("shape", ["balanced", "lognormal", "one in five"])
def test_nineteen_of_twenty_intervals_hold_the_truth_whatever_the_shape(shape, num_users, agreement):
    """`agreement`: the share of the variance that a user's rows have in common."""
    rng = np.random.default_rng([num_users, round(10 * agreement), len(shape)])
    held = had = 0
    for _ in range(40):  # of each draw of sizes TRIALS / 40 draws of values
        rows = np.repeat(np.arange(num_users), sizes_of(shape, num_users, rng))
        trials = [f"trial {number}" for number in range(TRIALS // 40)]
        values = rng.normal(0, 1, (num_users, len(trials)))[rows] * agreement**0.5
        means = ClusteredMeans(trials)
        means.add([f"{user:03d}" for user in rows], values + rng.normal(0, 1, values.shape) * (1 - agreement) ** 0.5)
        for each in means.differences().values():
            assert (each.low is None) == (each.p_value is None) == (each.effective_users < 4)
            assert each.p_value is None or each.is_significant == (not each.low <= 0 <= each.high)
            had += each.low is not None
            held += each.low is not None and each.low <= 0 <= each.high
    if (shape, num_users) == ("one in five", 10):  # two users have 60 of 68 rows
        assert had == 0
        return
    assert had > 0.5 * TRIALS
    assert 0.93 <= held / had <= 0.99


def test_effective_users_are_all_users_where_rows_are_equal_and_fewer_where_they_are_not():
    def effective(*rows: int) -> float:
        found, counts = np.unique(rows, return_counts=True)
        return UserSizes(found.astype(float), counts.astype(float)).effective

    assert [effective(*[rows] * users) for rows, users in ((1, 2), (7, 10), (3, 1000))] == pytest.approx([2, 10, 1000])
    assert effective(5) == 1
    assert effective(*[30] * 6, *[1] * 24) == pytest.approx(6.1, abs=0.1)
    assert effective(1000, *[1] * 100) < 2.01
    assert effective(4, 5, 5, 6) == pytest.approx(4, abs=0.3)


def test_degrees_of_freedom_are_those_of_the_matrices_they_abbreviate():
    """tr(G)^2 / tr(G G) of the CR2 estimator, written as matrices over users."""
    rows = np.array([1.0, 1, 2, 5, 5, 9])
    share = rows / rows.sum()
    centre = np.eye(6) - np.outer(share, np.ones(6))  # what users add up to -> their residuals
    g = np.diag((1 - share) ** -0.5) @ centre @ np.diag(rows**2) @ centre.T @ np.diag((1 - share) ** -0.5)
    found, counts = np.unique(rows, return_counts=True)
    sizes = UserSizes(found, counts.astype(float))
    assert sizes.effective == pytest.approx(np.trace(g) ** 2 / np.trace(g @ g) + 1)
    plain = centre @ np.diag(rows**2) @ centre.T
    assert sizes.inflation == pytest.approx((rows**2).sum() / np.trace(plain))


def test_below_four_effective_users_there_is_no_interval_and_a_word_why():
    few, many, lopsided = (ClusteredMeans(["a"]) for _ in range(3))
    few.add(users(3), np.array([[1.0], [2.0], [4.0]]))
    many.add(users(4), np.array([[1.0], [2.0], [4.0], [5.0]]))
    lopsided.add(["a"] * 50 + users(9), np.arange(59.0)[:, None])
    found = [each.estimates()["a"] for each in (few, many, lopsided)]
    assert [each.why_no_interval for each in found] == ["few_effective_users", None, "few_effective_users"]
    assert [each.differences()["a"].p_value is None for each in (few, many, lopsided)] == [True, False, True]
    assert lopsided.estimates()["a"].as_dict()["effective_users"] < 4 < found[2].users


def test_equal_values_have_no_interval_and_the_sign_test_s_significance():
    for num_users, significant in ((5, False), (6, True)):
        means = ClusteredMeans(["same", "zero"])
        means.add(users(num_users), np.tile([0.1, 0.0], (num_users, 1)))
        same, zero = means.differences().values()
        assert (same.low, same.high, same.p_value, same.is_significant) == (None, None, 2.0 ** (1 - num_users), significant)
        assert (zero.low, zero.high, zero.p_value, zero.is_significant) == (None, None, 1.0, False)


def test_values_that_rounding_alone_tells_apart_are_equal():
    """0.4 - 0.3 and 0.5 - 0.4: taken for different, two users would be certain beyond any doubt."""
    means = ClusteredMeans(["a"])
    means.add(["u1", "u2"], np.array([[0.4 - 0.3], [0.5 - 0.4]]))
    found = means.differences()["a"]
    assert (found.low, found.p_value) == (None, 0.5)


def test_order_and_batches_change_nothing():
    names, values = users(50), np.random.default_rng(3).random((50, 2))
    whole, pieces = ClusteredMeans(["a", "b"]), ClusteredMeans(["a", "b"])
    whole.add(names, values)
    for start in range(49, -1, -7):
        rows = slice(max(0, start - 6), start + 1)
        pieces.add(names[rows], values[rows])
    for name, estimate in whole.estimates().items():
        assert pieces.estimates()[name] == pytest.approx(estimate)


def test_rows_of_one_user_promise_no_more_than_one_row():
    once, often = ClusteredMeans(["score"]), ClusteredMeans(["score"])
    values = np.random.default_rng(4).random((40, 1))
    once.add(users(40), values)
    often.add([user for user in users(40) for _ in range(25)], np.repeat(values, 25, axis=0))
    one, many = once.estimates()["score"], often.estimates()["score"]
    assert (many.low, many.high) == pytest.approx((one.low, one.high))
    assert (many.rows, many.users) == (1000, 40)


def test_a_user_whose_rows_come_in_two_batches_is_one_user():
    means = ClusteredMeans(["a", "b"])
    means.add(["x", "y"], np.array([[1.0, 1.0], [1.0, NAN]]))
    means.add(["y", "y"], np.array([[1.0, 2.0], [1.0, NAN]]))
    means.add(["y", "z"], np.array([[1.0, 2.0], [NAN, 1.0]]))
    found = means.estimates()
    assert (found["a"].users, found["b"].users) == (2, 3)
    assert (found["a"].rows, found["b"].rows) == (5, 4)


def test_absent_scores_are_left_out_and_one_row_has_no_interval():
    means = ClusteredMeans(["here", "sometimes", "never"])
    means.add(["a", "b"], np.array([[1.0, NAN, NAN], [2.0, 5.0, NAN]]))
    means.add([], np.zeros((0, 3)))
    found = means.estimates()
    assert found.keys() == {"here", "sometimes"}
    assert found["sometimes"] == (5.0, None, None, 1, 1, 1.0)
    assert means.differences()["sometimes"].p_value is None
    text = json.dumps([each.as_dict() for each in (*found.values(), *means.differences().values())], allow_nan=False)
    assert "null" in text


def test_a_difference_is_told_from_noise():
    noise = np.random.default_rng(6).normal(0.0, 1.0, (300, 1))
    noise -= noise.mean()
    for shift, significant in ((0.0, False), (0.02, False), (0.4, True), (-0.4, True)):
        means = ClusteredMeans(["score"])
        means.add(users(300), noise + shift)
        found = means.differences()["score"]
        assert found.is_significant == significant
        assert (found.low <= 0 <= found.high) != significant
        assert found.mean == pytest.approx(shift)
        assert found.as_dict()["significant"] is significant
