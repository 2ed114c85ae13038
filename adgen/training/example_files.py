"""Cached examples: Parquet parts with deterministic names, and an index that is written last.

A folder without its index is unfinished: the same command goes on with the parts that are missing. Readers take whole
row groups and keep the last ones: an epoch walks through windows of neighbouring groups (`order.Order`).
"""

import bisect
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from adgen.errors import InputError
from adgen.shop.inputs.locations import filesystem

INDEX = "index.json"
ROWS_PER_GROUP = 64
GROUPS_KEPT = 96


@dataclass(frozen=True)
class Index:
    """What is in a folder of examples."""

    parts: list[list[int]]
    """Row-group sizes of each part."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why rows of the inputs became no example, and how many."""

    @property
    def num_rows(self) -> int:
        """Examples in all parts."""
        return sum(map(sum, self.parts))

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Of all parts, one after another."""
        return tuple(size for part in self.parts for size in part)


class ExampleFolder:
    """A folder of parts, local or on S3."""

    def __init__(self, uri: str):
        self.uri = uri
        self.files, self.path = filesystem(uri)

    def index(self) -> Index | None:
        """The index; None while the folder is unfinished. InputError when it is damaged."""
        try:
            with self.files.open_input_file(f"{self.path}/{INDEX}") as source:
                return Index(**json.loads(source.read()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.uri}/{INDEX}: damaged ({error}): remove the folder, it will be made again") from None

    def commit(self, index: Index) -> None:
        """Write the index: the folder is complete."""
        self._write(INDEX, json.dumps(asdict(index)).encode())

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return self.files.get_file_info(f"{self.path}/{name}").type == pafs.FileType.File

    def write(self, name: str, table: pa.Table) -> None:
        """One Parquet file, whole or not at all."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=ROWS_PER_GROUP)
        self._write(name, sink.getvalue())

    def read(self, name: str) -> pa.Table:
        """One Parquet file."""
        with self.files.open_input_file(f"{self.path}/{name}") as source:
            return pq.read_table(source)

    def _write(self, name: str, data: bytes | pa.Buffer) -> None:
        folder = f"{self.path}/{name}".rpartition("/")[0]
        if not isinstance(self.files, pafs.LocalFileSystem):  # an object appears when it is complete
            with self.files.open_output_stream(f"{self.path}/{name}") as sink:
                sink.write(data)
            return
        self.files.create_dir(folder, recursive=True)
        with self.files.open_output_stream(f"{self.path}/{name}.part") as sink:
            sink.write(data)
        self.files.move(f"{self.path}/{name}.part", f"{self.path}/{name}")


def part_name(number: int) -> str:
    """Of part 0, 1, ..."""
    return f"part-{number:06}.parquet"


class ExampleReader:
    """Examples by number."""

    def __init__(self, folder: ExampleFolder, index: Index | None = None):
        self.folder = folder
        self.index = index or folder.index()
        if self.index is None:
            raise InputError(f"{folder.uri}: unfinished; run the same command again to finish it")
        self._places = [(part, group) for part, sizes in enumerate(self.index.parts) for group in range(len(sizes))]
        self._starts = [0]
        for size in self.index.group_sizes:
            self._starts.append(self._starts[-1] + size)
        self._kept: OrderedDict[int, list[dict]] = OrderedDict()

    def rows(self, numbers: Sequence[int]) -> list[dict]:
        """The examples of these numbers, each with its `number`."""
        return [self._row(number) for number in numbers]

    def _row(self, number: int) -> dict:
        group = bisect.bisect_right(self._starts, number) - 1
        return self._group(group)[number - self._starts[group]] | {"number": number}

    def _group(self, group: int) -> list[dict]:
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        part, inside = self._places[group]
        with self.folder.files.open_input_file(f"{self.folder.path}/{part_name(part)}") as source:
            rows = pq.ParquetFile(source).read_row_group(inside).to_pylist()
        self._kept[group] = rows
        if len(self._kept) > GROUPS_KEPT:
            self._kept.popitem(last=False)
        return rows
