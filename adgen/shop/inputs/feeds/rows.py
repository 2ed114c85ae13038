"""Rows of a feed or a log, whatever its format: each with the line where it begins and its values by normal name.

A normal name is in lower case, with _ for blanks and dashes and without the prefix g:. A name that is there several times has a
list. What lies inside an object has a dotted name: `{"image": [{"url": 1}, {"url": 2}]}` is image.url, a list of two. Of Parquet
the line is the row's number.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as kinds

from adgen.errors import InputError
from adgen.shop.inputs.feeds.sources import Source
from adgen.shop.inputs.feeds.xml_rows import add_value, xml_rows

Row = tuple[int, dict[str, Any]]
DELIMITERS = "\t,;|"
MAX_CELL = 2**20  # characters
MAX_LINE = 16 * 2**20
MAX_DEPTH = 20  # of objects inside objects
LONGEST_NAME = 200
_LINES_LOOKED_AT = 50  # for the names of columns
_BLANKS = re.compile(r"[\s\-]+")
_QUOTED = re.compile(r'"[^"]*"')
_BRACKETS = re.compile(r"\(.*\)$")


class Report(Protocol):
    """Called for what is wrong with a row."""

    def __call__(self, line: int, column: str, value: Any, reason: str, detail: str, skipped: bool = True) -> None: ...


def normal(name: str) -> str:
    """A column's normal name: `g:Image Link` is image_link, `structured title(a:b)` is structured_title."""
    name = _BRACKETS.sub("", name.strip().strip("\ufeff").lower()) or name.strip().lower()
    return _BLANKS.sub("_", name.removeprefix("g:").strip())


def read_rows(source: Source, report: Report, encoding: str | None = None) -> tuple[list[str] | None, Iterator[Row]]:
    """(normal names of its columns, None where each row names its own; the rows). InputError names file and line of what cannot
    be read on; `report` is told of single rows."""
    kind = source.kind()
    if kind == "parquet":
        return _parquet_rows(source)
    if kind == "xml":
        return None, xml_rows(source, normal)
    encoding = encoding or source.encoding()
    text = open_text(source, encoding)
    if kind == "json":
        return None, _json_rows(source, text, report)
    with open_text(source, encoding) as beginning:
        looked_at = [beginning.readline(2**16) for _ in range(_LINES_LOOKED_AT)]
    return _table_rows(source, text, _delimiter(looked_at), report)


def open_text(source: Source, encoding: str | None = None) -> io.TextIOWrapper:
    """The text of a source, line ends as they are; what is not of its encoding is U+FFFD."""
    return io.TextIOWrapper(source.open(), _known(encoding or source.encoding()), "replace", newline="")


def text_lines(source: Source, text: io.TextIOWrapper) -> Iterator[str]:
    """Its lines. InputError: one is longer than MAX_LINE, which would be held in memory whole."""
    number = 0
    while line := text.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise InputError(f"{source.name}, line {number}: has more than {MAX_LINE} characters")
        yield line


def _known(encoding: str) -> str:
    try:
        "".encode(encoding)
    except LookupError:
        raise InputError(f"--encoding {encoding}: is no encoding that Python knows, such as utf-8 or latin-1") from None
    return encoding


def _table_rows(source: Source, text: io.TextIOWrapper, delimiter: str, report: Report) -> tuple[list[str], Iterator[Row]]:
    csv.field_size_limit(MAX_CELL)
    rows = _csv_rows(source, csv.reader(text_lines(source, text), delimiter=delimiter))
    header = next((cells for _, cells in rows if not _is_above_names(cells)), None)
    if header is None:
        raise InputError(f"{source.name}: has no line with the names of its columns")
    names = [normal(name) for name in header]
    if len(names) == 1:
        raise InputError(
            f"{source.name}: its first line has one column, {header[0]!r:.80}; expected tabs, commas, ; or | between names"
        )
    return names, _named(rows, names, report)


def _delimiter(lines: list[str]) -> str:
    """The one that is most often between the names of columns; what stands in quotes parts nothing."""
    names = next((line for line in lines if not _is_above_names([line.replace('"', "")])), "")
    return max(DELIMITERS, key=_QUOTED.sub("", names).count)


def _is_above_names(cells: list[str]) -> bool:
    """An empty line, the comments of Meta's template (`# Required | ...`), or Excel's `sep=;`."""
    filled = [text for cell in cells if (text := cell.strip("\ufeff \t\r\n"))]
    return all(text.startswith("#") for text in filled) or bool(re.fullmatch(r"sep=.?", "".join(filled)))


def _csv_rows(source: Source, lines: Any) -> Iterator[tuple[tuple[int, int], list[str]]]:
    """((first line, last line), cells) of each row that is not empty."""
    while True:
        start = lines.line_num + 1
        try:
            cells = next(lines, None)
        except csv.Error as error:
            raise InputError(f"{source.name}, line {start}: {error}; does a quote open a cell that no quote ends?") from None
        if cells is None:
            return
        if cells:
            yield (start, lines.line_num), cells


def _named(rows: Iterator[tuple[tuple[int, int], list[str]]], names: list[str], report: Report) -> Iterator[Row]:
    several = len(set(names)) < len(names)
    for (line, last), cells in rows:
        # Exporters leave out empty cells at a row's end. Where a short row spans lines, a stray quote has swallowed some.
        if len(cells) > len(names) or (len(cells) < len(names) and last > line):
            detail = f"{len(cells)} cells, {len(names)} columns" + (f"; it reaches to line {last}" if last > line else "")
            report(line, "", cells[-1], "wrong_number_of_cells", detail)
        elif several:
            yield line, _gathered(zip(names, cells, strict=False))
        else:
            yield line, dict(zip(names, cells, strict=False))


def _gathered(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, cell in values:
        add_value(row, name, cell)
    return row


def _json_rows(source: Source, text: io.TextIOWrapper, report: Report) -> Iterator[Row]:
    for number, line in enumerate(text_lines(source, text), 1):
        if not line.strip("\ufeff \t\r\n"):
            continue
        try:
            row = json.loads(line.lstrip("\ufeff"))
        except (ValueError, RecursionError) as error:
            report(number, "", line, "not_json", str(error))
            continue
        if not isinstance(row, dict):
            report(number, "", line, "not_json", f"found {type(row).__name__}, expected an object")
            continue
        yield number, _gathered(_flat((normal(name), value) for name, value in row.items()))


def _flat(values: Iterable[tuple[str, Any]], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """With dotted names for what lies inside objects, and inside lists of them."""
    for name, value in values:
        objects = value if isinstance(value, list) else [value]
        inside = objects and all(isinstance(each, dict) for each in objects)
        if inside and depth < MAX_DEPTH and len(name) <= LONGEST_NAME:
            for each in objects:
                yield from _flat(((f"{name}.{normal(inner)}", below) for inner, below in each.items()), depth + 1)
        else:
            yield name, value


def _names_in(name: str, kind: pa.DataType) -> list[str]:
    """The names that `_flat` gives to values of this type."""
    kind = kind.value_type if kinds.is_list(kind) or kinds.is_large_list(kind) else kind
    if not kinds.is_struct(kind):
        return [name]
    return [each for field in kind for each in _names_in(f"{name}.{normal(field.name)}", field.type)]


def _parquet_rows(source: Source) -> tuple[list[str], Iterator[Row]]:
    try:
        file = pq.ParquetFile(source.path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{source.name}: cannot be read as Parquet: {error}") from None
    names = [normal(name) for name in file.schema_arrow.names]
    known = [each for name, kind in zip(names, file.schema_arrow.types, strict=True) for each in _names_in(name, kind)]
    return known, _rows_of_parquet(source, file, names)


def _rows_of_parquet(source: Source, file: pq.ParquetFile, names: list[str]) -> Iterator[Row]:
    line = 0
    try:
        for batch in file.iter_batches(8192):
            columns = [_values(column) for column in batch.columns]
            for cells in zip(*columns, strict=True):
                line += 1
                yield line, _gathered(_flat(zip(names, cells, strict=True)))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{source.name}, after row {line}: cannot be read on: {error}") from None
    if line != file.metadata.num_rows:  # Arrow reads a column of no rows as the file's end
        raise InputError(f"{source.name}, after row {line}: cannot be read on: the file says {file.metadata.num_rows:,} rows")


def _values(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except (UnicodeDecodeError, ValueError):  # text that is no UTF-8 under a string column; nanoseconds beyond Python's
        kind = pa.binary() if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) else pa.string()
        return [each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in column.cast(kind).to_pylist()]
