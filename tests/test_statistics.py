"""Intervals hold what they promise, differences are told from noise, and nothing is ever NaN."""

import json

import numpy as np
import pytest

from adgen.evaluation.statistics import Bootstrap

NAN = float("nan")


def users(count: int) -> list[str]:
    return [f"user {number}" for number in range(count)]


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, (400, 1))
    bootstrap = Bootstrap(["score"], resamples=2000)
    bootstrap.add(users(400), values)
    found = bootstrap.estimates()["score"]
    error = values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.25 * error)


def test_most_intervals_hold_the_truth():
    rng, held = np.random.default_rng(2), 0
    for _ in range(100):
        bootstrap = Bootstrap(["score"], resamples=300)
        bootstrap.add([str(each) for each in rng.integers(0, 2**60, 60)], rng.exponential(1.0, (60, 1)))
        found = bootstrap.estimates()["score"]
        held += found.low <= 1.0 <= found.high
    assert 85 <= held <= 99


@pytest.mark.parametrize(("num_users", "trials"), [(3, 600), (10, 600), (100, 300)])
def test_noise_is_called_significant_in_one_of_twenty_trials_however_few_users(num_users, trials):
    rng = np.random.default_rng(num_users)
    names = [f"trial {number}" for number in range(trials)]
    values = rng.normal(0.0, 1.0, (num_users, 3, trials)) + rng.normal(0.0, 1.0, (num_users, 1, trials))  # rows of a user agree
    bootstrap = Bootstrap(names, resamples=500)
    bootstrap.add(np.repeat(users(num_users), 3), values.reshape(3 * num_users, trials))
    found = bootstrap.differences().values()
    alarms = sum(each.is_significant for each in found)
    assert alarms == sum(not each.low <= 0 <= each.high for each in found)
    # 5% with four standard deviations of the count; the error of 500 resamples' deviation is in all trials the same.
    assert abs(alarms / trials - 0.05) < 4 * (0.05 * 0.95 / trials) ** 0.5


def test_equal_values_have_no_interval_and_the_sign_test_s_significance():
    for num_users, significant in ((5, False), (6, True)):
        bootstrap = Bootstrap(["same", "zero"], 100)
        bootstrap.add(users(num_users), np.tile([0.1, 0.0], (num_users, 1)))
        same, zero = bootstrap.differences().values()
        assert (same.low, same.high, same.p_value, same.is_significant) == (None, None, 2.0 ** (1 - num_users), significant)
        assert (zero.low, zero.high, zero.p_value, zero.is_significant) == (None, None, 1.0, False)


def test_values_that_rounding_alone_tells_apart_are_equal():
    """0.4 - 0.3 and 0.5 - 0.4: taken for different, two users would be certain beyond any doubt."""
    bootstrap = Bootstrap(["a"])
    bootstrap.add(["u1", "u2"], np.array([[0.4 - 0.3], [0.5 - 0.4]]))
    found = bootstrap.differences()["a"]
    assert (found.low, found.p_value) == (None, 0.5)


def test_order_and_batches_change_nothing():
    names, values = users(50), np.random.default_rng(3).random((50, 2))
    whole, pieces = Bootstrap(["a", "b"], 200, seed=5), Bootstrap(["a", "b"], 200, seed=5)
    whole.add(names, values)
    for start in range(49, -1, -7):
        rows = slice(max(0, start - 6), start + 1)
        pieces.add(names[rows], values[rows])
    for name, estimate in whole.estimates().items():
        assert pieces.estimates()[name] == pytest.approx(estimate)
    other = Bootstrap(["a", "b"], 200, seed=6)
    other.add(names, values)
    assert other.estimates()["a"].low != whole.estimates()["a"].low


def test_rows_of_one_user_promise_no_more_than_one_row():
    once, often = Bootstrap(["score"], 500), Bootstrap(["score"], 500)
    values = np.random.default_rng(4).random((40, 1))
    once.add(users(40), values)
    often.add([user for user in users(40) for _ in range(25)], np.repeat(values, 25, axis=0))
    one, many = once.estimates()["score"], often.estimates()["score"]
    assert (many.low, many.high) == pytest.approx((one.low, one.high))
    assert (many.rows, many.users) == (1000, 40)


def test_a_user_whose_rows_come_in_two_batches_is_one_user():
    bootstrap = Bootstrap(["a", "b"], 100)
    bootstrap.add(["x", "y"], np.array([[1.0, 1.0], [1.0, NAN]]))
    bootstrap.add(["y", "y"], np.array([[1.0, 2.0], [1.0, NAN]]))
    bootstrap.add(["y", "z"], np.array([[1.0, 2.0], [NAN, 1.0]]))
    found = bootstrap.estimates()
    assert (found["a"].users, found["b"].users) == (2, 3)
    assert (found["a"].rows, found["b"].rows) == (5, 4)


def test_absent_scores_are_left_out_and_one_row_has_no_interval():
    bootstrap = Bootstrap(["here", "sometimes", "never"], 100)
    bootstrap.add(["a", "b"], np.array([[1.0, NAN, NAN], [2.0, 5.0, NAN]]))
    bootstrap.add([], np.zeros((0, 3)))
    found = bootstrap.estimates()
    assert found.keys() == {"here", "sometimes"}
    assert found["sometimes"] == (5.0, None, None, 1, 1)
    assert bootstrap.differences()["sometimes"].p_value is None
    text = json.dumps([each.as_dict() for each in (*found.values(), *bootstrap.differences().values())], allow_nan=False)
    assert "null" in text


def test_a_difference_is_told_from_noise():
    noise = np.random.default_rng(6).normal(0.0, 1.0, (300, 1))
    noise -= noise.mean()
    for shift, significant in ((0.0, False), (0.02, False), (0.4, True), (-0.4, True)):
        bootstrap = Bootstrap(["score"])
        bootstrap.add(users(300), noise + shift)
        found = bootstrap.differences()["score"]
        assert found.is_significant == significant
        assert (found.low <= 0 <= found.high) != significant
        assert found.mean == pytest.approx(shift)
        assert found.as_dict()["significant"] is significant
