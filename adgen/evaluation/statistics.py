"""Means with 95% intervals, and differences with their significance, from rows that are seen once, batch by batch.

The Poisson bootstrap (Chamandy et al. 2012): in each resample a user counts as often as a draw from Poisson(1) says, which
needs no list of all rows. A draw belongs to the user and the seed, so that neither the order of rows nor how they are cut into
batches changes a result. Users are drawn and not rows, since rows of one user are alike: taken for independent they would
promise more certainty than there is. What cannot be told (an interval from one user) is None, never NaN.

Percentiles of resamples are too narrow when users are few: of n users they spread by sqrt((n - 1) / n) too little, and their
tails are a normal distribution's. So resamples give the standard error, which is made larger by the inverse, and intervals and
p-values are those of Student's t with n - 1 degrees of freedom. A resample's error is taken in first order, (its sum - mean *
its rows) / all rows, whose variance is that of the users' own residuals (the cluster-robust one): the plain quotient of a
resample is not defined where it drew nobody, and varies by 30% too much at three users.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 1000
_TAIL = 0.025


class Estimate(NamedTuple):
    """The mean of a score over the rows that have it."""

    mean: float
    low: float | None
    """Lower end of the 95% interval; None where the rows are of one user or all values are equal."""
    high: float | None
    rows: int
    users: int

    @property
    def why_no_interval(self) -> str | None:
        """None where there is one."""
        return None if self.low is not None else why_no_interval(self.rows, self.users)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def why_no_interval(rows: int, users: int) -> str:
    """Of a mean of so many rows of so many users that has none: one_row, one_user, or no_variance, where all values or what users
    add up to are equal."""
    return "one_row" if rows == 1 else "one_user" if users == 1 else "no_variance"


class Difference(NamedTuple):
    """The mean of paired differences."""

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    """Two-sided, of Student's t; where all users have the same difference, of the sign test. None for one user."""
    rows: int
    users: int

    @property
    def is_significant(self) -> bool:
        """Whether it is at 5%."""
        return self.p_value is not None and self.p_value < 0.05

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict() | {"significant": self.is_significant}


class Change(NamedTuple):
    """A score of both evaluations, over the pairs that have it in both."""

    here: float
    there: float
    difference: Difference
    """here minus there."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"here": self.here, "there": self.there} | self.difference.as_dict()


class Bootstrap:
    """Sums of some scores, and of their resamples. Memory: 16 bytes a score and resample, whatever the rows."""

    def __init__(self, names: Sequence[str], resamples: int = RESAMPLES, seed: int = 0):
        self.names, self.seed = tuple(names), seed
        self._sums = np.zeros((2, len(self.names)))  # of values, of rows that have one
        self._users = np.zeros(len(self.names), np.int64)
        self._last: tuple[str, np.ndarray] = ("", np.zeros(len(self.names), bool))  # the newest user, and the scores counted of it
        self._ranges = np.stack([np.full(len(self.names), np.inf), np.full(len(self.names), -np.inf)])
        self._resampled = np.zeros((resamples, 2, len(self.names)))

    def add(self, users: Sequence[str], values: np.ndarray) -> None:
        """Rows of these users: values (n, num_names), NaN where a row has no such score. The rows of a user come one after the
        other, if need be over several batches; else `users` of an estimate counts that user more than once."""
        if not len(users):
            return
        there = np.isfinite(values)
        both = np.stack([np.where(there, values, 0.0), there.astype(float)], axis=1)  # (n, 2, K)
        found, inverse = np.unique(np.asarray(users, dtype=str), return_inverse=True)
        by_user = np.zeros((len(found), *both.shape[1:]))
        np.add.at(by_user, inverse, both)
        weights = poisson_weights(found, len(self._resampled), self.seed)
        self._sums += by_user.sum(0)
        self._ranges[0] = np.minimum(self._ranges[0], np.where(there, values, np.inf).min(0))
        self._ranges[1] = np.maximum(self._ranges[1], np.where(there, values, -np.inf).max(0))
        self._count_users(found, by_user[:, 1] > 0, str(users[-1]))
        self._resampled += np.tensordot(weights, by_user, axes=(0, 0))

    def _count_users(self, found: np.ndarray, scored: np.ndarray, newest: str) -> None:
        last, counted = self._last
        new = scored & ~((found == last)[:, None] & counted)
        self._users += new.sum(0)
        now = scored[found == newest][0]
        self._last = newest, (now | counted if newest == last else now)

    def estimates(self) -> dict[str, Estimate]:
        """By name; a score that no row has is left out."""
        return {
            name: Estimate(float(self._sums[0, k] / self._sums[1, k]), *self._interval(k), *self._counts(k))
            for k, name in enumerate(self.names)
            if self._sums[1, k]
        }

    def differences(self) -> dict[str, Difference]:
        """The same where the values are differences of pairs."""
        return {
            name: Difference(each.mean, each.low, each.high, self._p_value(self.names.index(name)), each.rows, each.users)
            for name, each in self.estimates().items()
        }

    def _counts(self, k: int) -> tuple[int, int]:
        return int(self._sums[1, k]), int(self._users[k])

    def _error(self, k: int) -> float | None:
        """The standard error of the mean; None where it cannot be told."""
        (total, rows), users, (low, high) = self._sums[:, k], self._users[k], self._ranges[:, k]
        if users < 2:
            return None
        errors = (self._resampled[:, 0, k] - total / rows * self._resampled[:, 1, k]) / rows
        error = float(np.sqrt((errors**2).mean() * users / (users - 1)))
        return error if error > same_within(low, high) else None  # users whose values are equal: no error to be seen

    def _interval(self, k: int) -> tuple[float | None, float | None]:
        return interval(self._mean(k), self._error(k), int(self._users[k]))

    def _p_value(self, k: int) -> float | None:
        return p_value(self._mean(k), self._error(k), int(self._users[k]))

    def _mean(self, k: int) -> float:
        return float(self._sums[0, k] / self._sums[1, k])


def same_within(low: float, high: float) -> float:
    """What values from `low` to `high` may differ by and still be the same number: 0.4 - 0.3 is not quite 0.5 - 0.4."""
    return 1e-9 * max(1.0, abs(low), abs(high))


def interval(mean: float, error: float | None, users: int) -> tuple[float | None, float | None]:
    """Student's 95% interval of a mean with that standard error; (None, None) where there is no error to be seen."""
    from scipy.stats import t

    if error is None:
        return None, None
    reach = float(t.isf(_TAIL, users - 1) * error)
    return mean - reach, mean + reach


def p_value(mean: float, error: float | None, users: int) -> float | None:
    """Two-sided, that the mean is not 0; where there is no error to be seen of the sign test. None for one user."""
    from scipy.stats import t

    if users < 2:
        return None
    if error is None:
        return 2.0 ** (1 - users) if mean else 1.0
    return float(2 * t.sf(abs(mean) / error, users - 1))


def poisson_weights(users: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """How often each resample counts each user: (num_users, resamples), a function of user and seed alone."""
    return np.stack([_draws(str(user), resamples, seed) for user in users]).astype(float)


@lru_cache(maxsize=8192)  # the whole and each kind of group ask for the same users, one after the other
def _draws(user: str, resamples: int, seed: int) -> np.ndarray:
    key = hashlib.blake2b(f"{seed} {user}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return generator.poisson(1.0, resamples).astype(np.uint8)
