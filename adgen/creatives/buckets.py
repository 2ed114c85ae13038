"""Tables larger than memory, split by pair_id into files of a local folder, so that two of them can be compared piece by piece."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_ROWS_PER_BUCKET = 65_536
_ROWS_AT_ONCE = 65_536


def digits_for(num_rows: int) -> int:
    """How many hex digits of a pair_id, which is as good as random, name a bucket that fits in memory; at most 256 buckets."""
    return next((digits for digits in (0, 1) if num_rows <= 16**digits * _ROWS_PER_BUCKET), 2)


class PairBuckets:
    """Rows by the first digits of their pair_id. One file is open at a time."""

    def __init__(self, folder: Path, schema: pa.Schema, digits: int):
        self.folder, self.schema, self.digits = folder, schema, digits
        self._files: dict[str, int] = {}
        folder.mkdir()

    def add(self, tables: Iterable[pa.Table]) -> "PairBuckets":
        """Take the rows of all tables; itself."""
        waiting: list[pa.Table] = []
        for table in tables:
            waiting.append(table)
            if sum(each.num_rows for each in waiting) >= _ROWS_AT_ONCE:
                self._write(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            self._write(pa.concat_tables(waiting))
        return self

    def read(self, name: str) -> pa.Table:
        """The rows of one bucket."""
        files = [self.folder / f"{name}-{number}" for number in range(self._files.get(name, 0))]
        tables = [pq.ParquetFile(path).read(use_threads=False) for path in files]
        return pa.concat_tables([self.schema.empty_table(), *tables])

    def _write(self, table: pa.Table) -> None:
        table = table.combine_chunks().sort_by("pair_id")
        start = 0
        for name, count in self._runs(table["pair_id"]):
            number = self._files.get(name, 0)
            pq.write_table(table.slice(start, count), self.folder / f"{name}-{number}", compression="zstd")
            self._files[name] = number + 1
            start += count

    def _runs(self, pair_ids: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
        if not self.digits:
            return iter([("", len(pair_ids))])
        found = pc.value_counts(pc.utf8_slice_codeunits(pair_ids, 0, self.digits)).to_pylist()  # in order: the rows are sorted
        return ((each["values"], each["counts"]) for each in found)


def bucket_names(*several: PairBuckets) -> list[str]:
    """The buckets that any of them has, in order."""
    return sorted(set().union(*(each._files for each in several)))
