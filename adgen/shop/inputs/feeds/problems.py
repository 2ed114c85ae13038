"""What was wrong with rows of a feed or a log: each as a row of a Parquet file, and a summary by reason."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adgen.errors import InputError

EXAMPLES_PER_REASON = 5
_LONGEST_VALUE = 200
_ROWS_AT_ONCE = 8192
PROBLEMS = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("line", pa.int64()),
        pa.field("column", pa.string()),
        pa.field("value", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("skipped", pa.bool_()),
        pa.field("detail", pa.string()),
    ]
)


class Problems:
    """Counts and examples; `close` ends the file."""

    def __init__(self, path: Path):
        self.skipped: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self.examples: list[str] = []
        self._writer = pq.ParquetWriter(path, PROBLEMS)
        self._rows: list[dict[str, Any]] = []

    def add(self, file: str, line: int, column: str, value: Any, reason: str, detail: str, skipped: bool = True) -> None:
        """One problem; `skipped`: the row is left out, else what was wrong of it is."""
        shown = "" if value is None else str(value)[:_LONGEST_VALUE].encode("utf-8", "replace").decode()
        counter = self.skipped if skipped else self.repaired
        counter[reason] += 1
        if counter[reason] <= EXAMPLES_PER_REASON:
            where = ", ".join(part for part in (file, f"line {line}", column and f"column {column}") if part)
            self.examples.append(f"{where}: {reason}: {shown!r}{': ' if detail else ''}{detail}")
        row = {"file": file, "line": line, "column": column, "value": shown, "reason": reason, "skipped": skipped, "detail": detail}
        self._rows.append(row)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def of(self, file: str):
        """`add` for one file, as readers call it."""
        return lambda line, column, value, reason, detail, skipped=True: self.add(
            file, line, column, value, reason, detail, skipped
        )

    def check(self, rows: int, max_bad_share: float, what: str) -> None:
        """InputError where no row can be used, or a larger share than this is left out."""
        bad = self.skipped.total()
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.skipped.most_common(8))
        first = f"; the first: {self.examples[0]}" if self.examples else ""
        if not rows:
            raise InputError(f"{what}: has no rows")
        if bad >= rows:
            raise InputError(f"{what}: none of its {rows} rows can be used: {reasons}{first}")
        if bad > max_bad_share * rows:
            raise InputError(
                f"{what}: {bad} of {rows} rows cannot be used, more than --max-bad-share {max_bad_share:g}; "
                f"nothing was written: {reasons}{first}"
            )

    def close(self) -> None:
        """The file is whole after it."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, PROBLEMS))
            self._rows = []
