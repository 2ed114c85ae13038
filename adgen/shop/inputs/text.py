"""Text of input tables that is no UTF-8, as Latin-1 exporters and some Spark jobs write it under a string column.

One such cell stops a join over the whole table, so it is repaired where the table is read: a row without a usable id is left
out and counted, and any other text is marked, so that the row that shows it can say why there is no creative.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

BAD_TEXT = "bad_text"  # the reason
_MARK = "\uffff"  # Unicode keeps this code point free of any character, so no text begins with it by chance
_KEYS = frozenset({"user_id", "product_id", "locale", "channel"})  # what names a row; of products only the id does
_NO_KEYS = {"products": frozenset({"locale"})}


def is_bad(text: str | None) -> bool:
    """Whether the text was no UTF-8."""
    return text is not None and text.startswith(_MARK)


def readable(text: str) -> str:
    """The text for people and models; where its bytes were no UTF-8 they are U+FFFD."""
    return text.removeprefix(_MARK)


def with_sound_text(batch: pa.RecordBatch, table: str, left_out: Counter[str]) -> pa.RecordBatch:
    """The batch with UTF-8 in all of its columns; itself where it had that.

    `left_out` counts what has no usable id, by `table.column`: rows that are not in the result, and clicks, which name no product
    there. ArrowInvalid where something else than text is wrong.
    """
    if _is_sound(batch):
        return batch
    keys = _KEYS - _NO_KEYS.get(table, frozenset())
    columns, kept = [], np.ones(batch.num_rows, bool)
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if not _is_sound(column):
            values = column.cast(_as_binary(field.type)).to_pylist()
            name = f"{table}.{field.name}"
            if field.name in keys:
                bad = np.array([isinstance(value, bytes) and _decoded(value, _nothing) is None for value in values])
                left_out[name] += int((bad & kept).sum())
                kept &= ~bad
            otherwise = partial(_counted, left_out, name) if field.name == "clicks" else _marked
            column = pa.array([_decoded(value, otherwise) for value in values], field.type)
        columns.append(column)
    sound = pa.RecordBatch.from_arrays(columns, schema=batch.schema).filter(pa.array(kept))
    sound.validate(full=True)
    return sound


def _is_sound(data: pa.RecordBatch | pa.Array) -> bool:
    try:
        data.validate(full=True)
        return True
    except pa.ArrowInvalid:
        return False


def _nothing(_: bytes) -> None:
    return None


def _marked(raw: bytes) -> str:
    return _MARK + raw.decode("utf-8", "replace")


def _counted(left_out: Counter[str], name: str, _: bytes) -> None:
    left_out[name] += 1


def _decoded(value: Any, otherwise: Callable[[bytes], str | None]) -> Any:
    """The value with text for bytes, at any depth; `otherwise` of bytes that are no UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return otherwise(value)
    if isinstance(value, list):
        return [_decoded(each, otherwise) for each in value]
    if isinstance(value, dict):
        return {name: _decoded(each, otherwise) for name, each in value.items()}
    return value


def _as_binary(kind: pa.DataType) -> pa.DataType:
    if kinds.is_string(kind):
        return pa.binary()
    if kinds.is_list(kind):
        return pa.list_(_as_binary(kind.value_type))
    if kinds.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_binary(field.type)) for field in kind])
    return kind
