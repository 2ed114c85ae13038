"""Random numbers that are functions of what they are for: no generator is carried, so order and counts change nothing.

A key is a 64-bit number made from names; `draw(key, i, j)` hashes it with index arrays of any shape.
"""

import numpy as np

from adgen.records import digest


def key_for(*names: str | int | None) -> int:
    """A 64-bit key from names and numbers."""
    return int(digest("draw", *names)[:16], 16)


def draw(key: int, *indices: np.ndarray | int) -> np.ndarray:
    """uint64 hashes of (key, indices), the indices broadcast together (splitmix64)."""
    state = np.asarray(np.uint64(key))
    with np.errstate(over="ignore"):  # numpy warns when a single number wraps around, as hashes do
        for index in indices:
            state = _splitmix(state ^ _splitmix(np.asarray(index).astype(np.uint64)))
        return _splitmix(state)


def unit(hashes: np.ndarray) -> np.ndarray:
    """The hashes as numbers in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(hashes: np.ndarray, limit: np.ndarray | int) -> np.ndarray:
    """The hashes as integers in [0, limit)."""
    return (unit(hashes) * limit).astype(np.int64)


def shuffled_blocks(key: int, size: int, count: int) -> np.ndarray:
    """`count` numbers in [0, size), each block of `size` of them a permutation: balanced, and a longer one extends it."""
    blocks = -(-count // size)
    order = np.argsort(draw(key, np.arange(blocks)[:, None], np.arange(size)[None, :]), axis=1, kind="stable")
    return order.reshape(-1)[:count]


def jump(hashes: np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """Jump consistent hashing: a number in [0, buckets) for each hash; when buckets grow, few numbers change."""
    keys, limit = np.array(hashes, np.uint64), np.broadcast_to(buckets, hashes.shape)
    chosen, following = np.full(keys.shape, -1, np.int64), np.zeros(keys.shape, np.int64)
    active = following < limit
    while active.any():
        chosen = np.where(active, following, chosen)
        keys = keys * np.uint64(2862933555777941757) + np.uint64(1)
        stride = 2.0**31 / ((keys >> np.uint64(33)).astype(np.float64) + 1)
        following = np.where(active, np.minimum((chosen + 1) * stride, 2.0**40).astype(np.int64), following)
        active = following < limit
    return chosen


def _splitmix(value: np.ndarray) -> np.ndarray:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
