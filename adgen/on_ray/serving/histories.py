"""Users' clicks on this machine's disk, spread over files by user key, so that one user's are found without reading all."""

import shutil
import weakref
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adgen.records import HISTORIES, user_key
from adgen.shop.inputs.tables import Inputs

_ROWS_PER_FILE = 4096
_MOST_FILES = 256
_SCHEMA = pa.schema([pa.field("user_key", pa.string()), *(field.with_nullable(True) for field in HISTORIES)])


class HistoryFiles:
    """The table histories as it was when this was made."""

    def __init__(self, inputs: Inputs, secret: bytes, folder: Path):
        """secret: of user keys. folder: new; it holds what `private/` holds, so only its owner may read it, and it goes with this
        object."""
        self._secret, self._folder = secret, folder
        self._files = min(_MOST_FILES, 1 + inputs["histories"].num_rows // _ROWS_PER_FILE)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        with ExitStack() as opened:
            writers = [opened.enter_context(pa.ipc.new_stream(str(self._path(n)), _SCHEMA)) for n in range(self._files)]
            for batch in inputs["histories"].batches(HISTORIES.names, batch_rows=8192):
                for number, rows in self._by_file(batch.to_pylist()).items():
                    writers[number].write_table(pa.Table.from_pylist(rows, _SCHEMA))

    def of(self, user_id: str) -> pa.Table:
        """The user's rows (HISTORIES); none where the table has none."""
        return self._rows(user_key(self._secret, user_id)).select(HISTORIES.names)

    def user_id(self, key: str) -> str | None:
        """Who is called so; None: nobody in the table."""
        found = self._rows(key)["user_id"]
        return found[0].as_py() if len(found) else None

    def _rows(self, key: str) -> pa.Table:
        with pa.memory_map(str(self._path(self._number(key)))) as source:
            table = pa.ipc.open_stream(source).read_all()
            return table.filter(pc.equal(table["user_key"], key))

    def _by_file(self, rows: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
        found = defaultdict(list)
        for row in rows:
            if row["user_id"] is not None:
                key = user_key(self._secret, row["user_id"])
                found[self._number(key)].append(row | {"user_key": key})
        return found

    def _number(self, key: str) -> int:
        return int(key[:8], 16) % self._files

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:03d}.arrow"
