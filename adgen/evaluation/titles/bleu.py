"""BLEU of a title and of all titles together, through sacrebleu, each row cut into tokens as its own language asks.

What BLEU counts of a row (n-grams found and made, lengths) adds up: a corpus is scored from the sum, so that no title is
held, and resamples of its users are scored from theirs.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import regex

from adgen.errors import InputError
from adgen.evaluation.statistics import RESAMPLES, Change, Difference, Estimate, UserSizes, interval, p_value, poisson_weights

NUM_COUNTS = 10
"""Of a row: n-grams found for n 1..4, n-grams made, length of the title, length of the nearest reference."""
_ORDERS = 4
_HAN, _OTHER_UNSPACED = regex.compile(r"\p{Han}"), regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


def written(references: Sequence[str | None]) -> list[str]:
    """The references that hold text: tables carry nulls and blanks."""
    return [reference for reference in references if reference and reference.strip()]


def bleu_tokenizer(references: Sequence[str], locale: str | None) -> str:
    """sacrebleu's tokenizer for a row, from what is not the model's: `zh` for Chinese, `char` for other scripts without
    spaces, else `13a`."""
    text = " ".join(references)
    if _OTHER_UNSPACED.search(text):
        return "char"
    return "zh" if _HAN.search(text) or (locale or "").lower().startswith("zh") else "13a"


def sentence_bleu(title: str, references: Sequence[str], locale: str | None = None) -> float:
    """BLEU of one title, 0..100, with effective order, as sacrebleu does for sentences."""
    return float(_sentence(title, references, locale).score)


def bleu_counts(title: str, references: Sequence[str], locale: str | None = None) -> list[int]:
    """What a row adds to the BLEU of its corpus: NUM_COUNTS whole numbers."""
    found = _sentence(title, references, locale)
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


def bleu_of_counts(counts: Sequence[int] | np.ndarray) -> float:
    """BLEU of the rows whose counts add up to `counts`, 0..100, as sacrebleu does for a corpus."""
    from sacrebleu.metrics import BLEU

    numbers = [int(number) for number in counts]
    found, made = numbers[:_ORDERS], numbers[_ORDERS : 2 * _ORDERS]
    return float(BLEU.compute_bleu(found, made, *numbers[2 * _ORDERS :], smooth_method="exp").score)


def corpus_bleu(titles: Sequence[str], references: Sequence[Sequence[str | None]], locales: Sequence[str | None]) -> float | None:
    """BLEU of all titles together, 0..100; None where no row has a reference. With one language it is sacrebleu's own.

    InputError when the three are not of one length.
    """
    if not len(titles) == len(references) == len(locales):
        raise InputError(f"BLEU of {len(titles)} titles with {len(references)} lists of references and {len(locales)} locales")
    rows = [
        bleu_counts(title, given, locale)
        for title, row, locale in zip(titles, references, locales, strict=True)
        if (given := written(row))
    ]
    return bleu_of_counts(np.sum(rows, axis=0)) if rows else None


class CorpusBleu:
    """BLEU of rows that are seen once, with a 95% interval of the Poisson bootstrap over users. Memory: NUM_COUNTS numbers a
    resample, whatever the rows."""

    def __init__(self, resamples: int = RESAMPLES, seed: int = 0):
        self.seed = seed
        self._counts = np.zeros(NUM_COUNTS, np.int64)
        self._resampled = np.zeros((resamples, NUM_COUNTS))  # whole numbers, in the type that multiplies fast
        self._rows = 0
        self._sizes: Counter[int] = Counter()  # users by their number of rows
        self._last: tuple[str | None, int] = (None, 0)  # the newest user and its rows, which may go on in the next batch

    def add(self, users: Sequence[str], counts: np.ndarray) -> None:
        """Rows of these users: counts (n, NUM_COUNTS). The rows of a user come one after the other, if need be over batches."""
        if not len(users):
            return
        found, inverse = np.unique(np.asarray(users, dtype=str), return_inverse=True)
        by_user = np.zeros((len(found), NUM_COUNTS), np.int64)
        np.add.at(by_user, inverse, counts)
        self._counts += by_user.sum(0)
        self._resampled += poisson_weights(found, len(self._resampled), self.seed).T @ by_user.astype(float)
        self._rows += len(users)
        self._count_users(Counter(map(str, users)), str(users[-1]))

    def _count_users(self, rows: Counter[str], newest: str) -> None:
        last, so_far = self._last
        rows[last] += so_far
        self._last = newest, rows.pop(newest)
        self._sizes.update(filter(None, rows.values()))

    def _users(self) -> UserSizes:
        sizes = self._sizes + Counter([self._last[1]])
        return UserSizes(np.array(list(sizes), float), np.array(list(sizes.values()), float))

    def estimate(self) -> Estimate | None:
        """None where there was no row; without an interval where there are too few effective users."""
        if not self._rows:
            return None
        mean, sizes = bleu_of_counts(self._counts), self._users()
        low, high = interval(mean, _error(self._drawn(), sizes), sizes.effective)
        ends = (None, None) if low is None else (max(0.0, low), min(100.0, high))
        return Estimate(mean, *ends, self._rows, int(sizes.users.sum()), sizes.effective)

    def _drawn(self) -> np.ndarray:
        """BLEU of each resample; NaN where it drew nobody."""
        return np.array([bleu_of_counts(counts) if counts[-1] else np.nan for counts in self._resampled])

    def change_from(self, there: "CorpusBleu") -> Change | None:
        """From another's titles for the same rows to these. Paired: both draw the same users. None where there is no row."""
        if not self._rows:
            return None
        mine, theirs, sizes = bleu_of_counts(self._counts), bleu_of_counts(there._counts), self._users()
        difference, users, effective = mine - theirs, int(sizes.users.sum()), sizes.effective
        error = _error(self._drawn() - there._drawn(), sizes)
        ends, p = interval(difference, error, effective), p_value(difference, error, users, effective)
        return Change(mine, theirs, Difference(difference, *ends, p, self._rows, users, effective))


def _error(drawn: np.ndarray, sizes: UserSizes) -> float | None:
    """The standard error of a statistic whose resamples are `drawn`, of users; None where it is not known."""
    drawn = drawn[np.isfinite(drawn)]
    if sizes.users.sum() < 2 or np.ptp(drawn) < 1e-9:  # every resample has the same BLEU, to rounding
        return None
    return float(np.std(drawn) * np.sqrt(sizes.inflation))


def _sentence(title: str, references: Sequence[str], locale: str | None):
    return _bleu(bleu_tokenizer(references, locale)).sentence_score(title, list(references))


@cache
def _bleu(tokenizer: str):
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenizer, effective_order=True)
