"""The rows with the largest or the smallest values of a stream, for people to look at."""

import heapq
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa


class Extremes:
    """The `most` rows with the largest (sign 1) or smallest (sign -1) values, of rows whose column `uri` says that there is a
    picture. Memory: those rows."""

    def __init__(self, sign: int, columns: Sequence[str], most: int):
        self.sign, self.columns, self.most = sign, columns, most
        self._heap: list[tuple[float, str, int, dict[str, Any]]] = []
        self._numbers = count()

    def offer(self, batch: pa.RecordBatch, values: np.ndarray) -> None:
        """Rows and their values (n,), NaN where a row has none."""
        usable = np.flatnonzero(np.isfinite(values) & batch["uri"].is_valid().to_numpy(zero_copy_only=False))
        order = usable[np.argsort(-self.sign * values[usable], kind="stable")]
        for index in order[: self.most].tolist():
            row = {name: batch[name][index].as_py() for name in self.columns} | {"value": float(values[index])}
            heapq.heappush(self._heap, (self.sign * row["value"], row["pair_id"], next(self._numbers), row))
            if len(self._heap) > self.most:
                heapq.heappop(self._heap)

    def rows(self) -> list[dict[str, Any]]:
        """With their `value`, the most extreme first."""
        return [row for *_, row in sorted(self._heap, reverse=True)]
