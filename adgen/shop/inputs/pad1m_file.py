"""The PAd1M file as a stream of decoded entries: a JSON array, or one object a line. Memory holds one entry."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from adgen.errors import InputError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_entries(path: Path) -> Iterator[Any]:
    """Each entry in turn, whatever JSON value it is. InputError names the file and where its JSON is broken."""
    try:
        with open(path, "rb") as source:
            if source.read(3) != _BYTE_ORDER_MARK:
                source.seek(0)
            start = source.tell()
            first = source.read(65_536).lstrip()[:1]
            source.seek(start)
            if first == b"[":
                yield from _array_entries(path, source)
            elif first == b"{":
                yield from _line_entries(path, source)
            elif first:
                raise InputError(f"{path}: starts with {first!r}; expected a JSON array or one object a line")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _array_entries(path: Path, source: BinaryIO) -> Iterator[Any]:
    number = 0
    try:
        for value in ijson.items(source, "item", use_float=True):
            number += 1
            yield value
    except (ijson.JSONError, UnicodeDecodeError) as error:
        problem = str(error).splitlines()[0].strip()
        raise InputError(f"{path}: broken JSON after entry {number}, before byte {source.tell()}: {problem}") from None


def _line_entries(path: Path, source: BinaryIO) -> Iterator[Any]:
    for number, line in enumerate(source, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: broken JSON at line {number}, column {error.colno}: {error.msg}") from None
        except (UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path}: broken JSON at line {number}: {error}") from None
        yield value
