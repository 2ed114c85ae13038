"""Which example comes when: a function of seed and place, whatever the number of workers, before and after any crash.

Examples lie in row groups, which are read whole. An epoch is a permutation in two levels, as in WebDataset: groups are
shuffled, then the examples within a window of neighbouring groups. Few groups are open at a time, and a small set is
shuffled perfectly.
"""

from dataclasses import dataclass, field

import numpy as np

WINDOW_GROUPS = 64


@dataclass
class Order:
    """An endless sequence of (epoch, example) over examples in row groups of the given sizes."""

    group_sizes: tuple[int, ...]
    seed: int
    held_out: frozenset[int] = frozenset()
    """Examples that never come."""
    window: int = WINDOW_GROUPS
    _known: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Examples of an epoch."""
        return sum(self.group_sizes) - len(self.held_out)

    def at(self, start: int, count: int) -> list[tuple[int, int]]:
        """(epoch, example) of the places start, start + 1, ..."""
        places = range(start, start + count)
        return [(place // len(self), int(self.epoch(place // len(self))[place % len(self)])) for place in places]

    def epoch(self, number: int) -> np.ndarray:
        """The examples (n,) of one epoch, in order."""
        if number not in self._known:
            self._known = {number: self._permuted(number)} | {k: v for k, v in self._known.items() if k == number - 1}
        return self._known[number]

    def _permuted(self, number: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, number])
        ends = np.cumsum(self.group_sizes)
        groups = [np.arange(end - size, end) for end, size in zip(ends, self.group_sizes, strict=True)]
        shuffled = rng.permutation(len(groups))
        windows = [shuffled[first : first + self.window] for first in range(0, len(groups), self.window)]
        everything = np.concatenate([rng.permutation(np.concatenate([groups[group] for group in w])) for w in windows])
        return everything[~np.isin(everything, list(self.held_out))]


def held_out(num_examples: int, wanted: int, seed: int) -> list[int]:
    """The examples that are kept for evaluation: as many as wanted, a tenth of all at most."""
    rng = np.random.default_rng([seed, num_examples])
    return sorted(rng.choice(num_examples, min(wanted, num_examples // 10), replace=False).tolist())


@dataclass(frozen=True)
class Share:
    """How a step's batch is cut: `workers` x `accumulation` micro-batches of `micro_batch` samples."""

    batch: int
    micro_batch: int
    workers: int

    @property
    def accumulation(self) -> int:
        """Micro-batches that a worker adds up for a step."""
        return self.batch // (self.micro_batch * self.workers)

    def place(self, number: int) -> int:
        """The first place of micro-batch `number`; they go around the workers: the same examples make a step, whoever
        computes them."""
        return number * self.micro_batch
