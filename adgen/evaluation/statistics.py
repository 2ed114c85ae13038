"""Means with 95% intervals, and differences with their significance, from rows that are seen once, batch by batch.

Rows of one user are alike: taken for independent they would promise more certainty than there is. So users are the clusters
of a cluster-robust error, in the form that is unbiased where users have unequal numbers of rows (CR2: a user's residual is
divided by sqrt(1 - its share of the rows); Bell and McCaffrey 2002). Intervals and p-values are those of Student's t with
Satterthwaite's degrees of freedom, reckoned as if the rows of a user agreed, which is the cautious end. One more than that is
the number of effective users: 30 users of equal rows count as 30; where six of them have 30 rows and the others one, as 6.
Below MIN_EFFECTIVE_USERS no interval holds what it promises, and there is none. What cannot be known is None, never NaN.

A user's error depends on the number of its rows and on what they add up to, so that one triple of sums for each number of
rows is all that has to be kept. BLEU is no mean: its error is that of a Poisson bootstrap (Chamandy et al. 2012) over users,
in which a draw belongs to the user and the seed, so that neither the order of rows nor how they are cut into batches counts.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 1000
MIN_EFFECTIVE_USERS = 4.0
_TAIL = 0.025


class UserSizes(NamedTuple):
    """How many users have how many rows: two arrays of one length, sizes all different and positive."""

    rows: np.ndarray  # rows a user
    users: np.ndarray  # users with this many rows

    @property
    def effective(self) -> float:
        """Satterthwaite's degrees of freedom of the CR2 error, plus one: the users there are where all have the same rows."""
        if self.users.sum() < 2:
            return float(self.users.sum())
        h = self._shares()
        a, v = 1 / (1 - h), h**2  # CR2's weight; the variance of a user's sum where its rows agree
        total = self._over_users(v)
        p, r, c = self._over_users(a * h * h), self._over_users(a * v * v), self._over_users(a * h * v)
        off = h * (h * total - 2 * v)  # what a user's residual shares with itself through the mean
        trace = self._over_users(a * (v + off))
        squares = 2 * (p * r + c * c) + (p * total) ** 2 - 4 * total * p * c + self._over_users(a * a * v * (v + 2 * off))
        return round(trace**2 / squares + 1, 9)  # four users of equal rows are four, not 3.9999999999999996

    @property
    def inflation(self) -> float:
        """By what the variance of plain residuals is too small: u / (u - 1) for u users of the same rows."""
        h = self._shares()
        v = h**2
        return self._over_users(v) / self._over_users(v + h * (h * self._over_users(v) - 2 * v))

    def _shares(self) -> np.ndarray:
        return self.rows / (self.rows @ self.users)

    def _over_users(self, values: np.ndarray) -> float:
        return float(self.users @ values)


class Estimate(NamedTuple):
    """The mean of a score over the rows that have it."""

    mean: float
    low: float | None
    """Lower end of the 95% interval; None where there are too few effective users or all values are equal."""
    high: float | None
    rows: int
    users: int
    effective_users: float | None = None
    """What users of unequal numbers of rows are worth; `users` where all have the same."""

    @property
    def why_no_interval(self) -> str | None:
        """None where there is one."""
        return None if self.low is not None else why_no_interval(self.rows, self.users, self.effective_users)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def why_no_interval(rows: int, users: int, effective_users: float | None = None) -> str:
    """Why a mean of these counts has none: one_row, one_user, few_effective_users, or no_variance, where
    all values or what users add up to are equal."""
    if rows == 1 or users == 1:
        return "one_row" if rows == 1 else "one_user"
    return "few_effective_users" if (effective_users or users) < MIN_EFFECTIVE_USERS else "no_variance"


class Difference(NamedTuple):
    """The mean of paired differences."""

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    """Two-sided, of Student's t; where all users have the same difference, of the sign test. None for one user, and where there
    are too few effective users."""
    rows: int
    users: int
    effective_users: float | None = None

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


class ClusteredMeans:
    """Sums of some scores by users. Memory: three numbers for each score and different number of rows a user."""

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self._sums = np.zeros((2, len(self.names)))  # of values, of rows that have one
        self._ranges = np.stack([np.full(len(self.names), np.inf), np.full(len(self.names), -np.inf)])
        self._first = np.full(len(self.names), np.nan)  # a score's first value: taken off, squares lose no digits
        self._last: tuple[str, np.ndarray] = ("", self._sums.copy())  # the newest user, whose rows may go on in the next batch
        self._by_size: tuple[dict[int, np.ndarray], ...] = tuple({} for _ in self.names)  # rows a user: (users, sums, squares)

    def add(self, users: Sequence[str], values: np.ndarray) -> None:
        """Rows of these users: values (n, num_names), NaN where a row has no such score. The rows of a user come one after the
        other, if need be over several batches; else an estimate counts that user more than once."""
        if not len(users):
            return
        there = np.isfinite(values)
        first = values[there.argmax(0), np.arange(len(self.names))]
        self._first = np.where(np.isnan(self._first) & there.any(0), first, self._first)
        both = np.stack([np.where(there, values - self._first, 0.0), there.astype(float)], axis=1)  # (n, 2, K)
        found, inverse = np.unique(np.asarray(users, dtype=str), return_inverse=True)
        by_user = np.zeros((len(found), *both.shape[1:]))
        np.add.at(by_user, inverse, both)
        self._sums += [np.where(there, values, 0.0).sum(0), there.sum(0)]
        self._ranges[0] = np.minimum(self._ranges[0], np.where(there, values, np.inf).min(0))
        self._ranges[1] = np.maximum(self._ranges[1], np.where(there, values, -np.inf).max(0))
        self._keep(found, by_user, str(users[-1]))

    def _keep(self, found: np.ndarray, by_user: np.ndarray, newest: str) -> None:
        """Count the users of whom no more rows come."""
        last, sums = self._last
        if last in found:
            by_user[found == last] += sums
        else:
            self._count(sums[None])
        self._last = newest, by_user[found == newest][0]
        self._count(by_user[found != newest])

    def _count(self, by_user: np.ndarray) -> None:
        for k, by_size in enumerate(self._by_size):
            for size, sums in _by_size(by_user[:, :, k]).items():
                by_size[size] = by_size.get(size, 0) + sums

    def estimates(self) -> dict[str, Estimate]:
        """By name; a score that no row has is left out."""
        return {name: self._estimate(k)[0] for k, name in enumerate(self.names) if self._sums[1, k]}

    def differences(self) -> dict[str, Difference]:
        """The same where the values are differences of pairs."""
        return {name: self._difference(k) for k, name in enumerate(self.names) if self._sums[1, k]}

    def _difference(self, k: int) -> Difference:
        each, error = self._estimate(k)
        p = p_value(each.mean, error, each.users, each.effective_users)
        return Difference(each.mean, each.low, each.high, p, each.rows, each.users, each.effective_users)

    def _estimate(self, k: int) -> tuple[Estimate, float | None]:
        """And the standard error of the mean; None where it is not known."""
        by_size = dict(self._by_size[k])
        for size, sums in _by_size(self._last[1][None, :, k]).items():
            by_size[size] = by_size.get(size, 0) + sums
        users, sums, squares = np.stack(list(by_size.values()), axis=1)
        sizes = UserSizes(np.array(list(by_size), float), users)
        (total, rows), effective = self._sums[:, k], sizes.effective
        mean, error = float(total / rows), None
        if users.sum() > 1:
            shifted = sums.sum() / rows
            residuals = squares - 2 * shifted * sizes.rows * sums + users * (shifted * sizes.rows) ** 2
            error = float(np.sqrt(np.maximum(residuals / (1 - sizes.rows / rows), 0).sum())) / float(rows)
            error = error if error > same_within(*self._ranges[:, k]) else None  # users whose values are equal: no error to be seen
        return Estimate(mean, *interval(mean, error, effective), int(rows), int(users.sum()), effective), error


def _by_size(by_user: np.ndarray) -> dict[int, np.ndarray]:
    """Of users (n, 2: sum, rows), by their number of rows: (users, sum of their sums, sum of the squares)."""
    sizes, inverse = np.unique(by_user[:, 1].astype(np.int64), return_inverse=True)
    sums = by_user[:, 0]
    found = np.stack([np.bincount(inverse, weights, len(sizes)) for weights in (np.ones(len(sums)), sums, sums**2)], axis=1)
    return {int(size): each for size, each in zip(sizes, found, strict=True) if size}


def same_within(low: float, high: float) -> float:
    """What values from `low` to `high` may differ by and still be the same number: 0.4 - 0.3 is not quite 0.5 - 0.4."""
    return 1e-9 * max(1.0, abs(low), abs(high))


def interval(mean: float, error: float | None, effective_users: float) -> tuple[float | None, float | None]:
    """Student's 95% interval of a mean with that standard error; (None, None) where there is no error to be seen, or too few
    effective users."""
    from scipy.special import stdtrit

    if error is None or effective_users < MIN_EFFECTIVE_USERS:
        return None, None
    reach = float(stdtrit(effective_users - 1, 1 - _TAIL)) * error
    return mean - reach, mean + reach


def p_value(mean: float, error: float | None, users: int, effective_users: float) -> float | None:
    """Two-sided, that the mean is not 0; where there is no error to be seen of the sign test. None for one user, and where there
    are too few effective ones."""
    from scipy.special import stdtr

    if users < 2:
        return None
    if error is None:
        return 2.0 ** (1 - users) if mean else 1.0
    return float(2 * stdtr(effective_users - 1, -abs(mean) / error)) if effective_users >= MIN_EFFECTIVE_USERS else None


def poisson_weights(users: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """How often each resample counts each user: (num_users, resamples), a function of user and seed alone."""
    return np.stack([_draws(str(user), resamples, seed) for user in users]).astype(float)


@lru_cache(maxsize=8192)  # the whole and each kind of group ask for the same users, one after the other
def _draws(user: str, resamples: int, seed: int) -> np.ndarray:
    key = hashlib.blake2b(f"{seed} {user}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return generator.poisson(1.0, resamples).astype(np.uint8)
