"""The PAd1M file as a stream of decoded entries: a JSON array, or one object a line. Memory holds one entry."""

import codecs
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from adgen.errors import InputError

MAX_ENTRY_BYTES = 16 * 2**20
_CHUNK = 2**20
_MAX_DIGITS = 1000  # Python reads no integer of more than 4300
_BLANK = " \t\r\n"


def read_entries(path: Path) -> Iterator[Any]:
    """Each entry in turn, whatever JSON value it is. InputError names the file and where its JSON is broken.

    NaN, infinities and integers of any size are read; an integer of more than a thousand digits as an infinity.
    """
    try:
        with open(path, "rb") as source:
            if source.read(3) != codecs.BOM_UTF8:
                source.seek(0)
            first = source.read(1)
            while first and first in _BLANK.encode():
                first = source.read(1)
            if first == b"[":
                yield from _array_entries(path, source)
            elif first == b"{":
                source.seek(-1, 1)
                yield from _line_entries(path, source)
            elif first:
                raise InputError(f"{path}: starts with {first!r}; expected a JSON array or one object a line")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf


_decoder = json.JSONDecoder(parse_int=_integer)


class _Text:
    """A file's text as far as it was read; `drop` forgets its beginning."""

    def __init__(self, source: BinaryIO):
        self._source, self._decode = source, codecs.getincrementaldecoder("utf-8")().decode
        self.text, self.is_whole = "", False
        self._start = source.tell()

    def more(self) -> None:
        """Read a chunk. UnicodeDecodeError: it is no UTF-8."""
        chunk = self._source.read(_CHUNK)
        self.is_whole = not chunk
        self.text += self._decode(chunk, self.is_whole)

    def drop(self, count: int) -> None:
        """Forget `count` characters."""
        self._start += len(self.text[:count].encode())
        self.text = self.text[count:]

    def byte_at(self, position: int) -> int:
        """Where in the file a character of `text` is."""
        return self._start + len(self.text[:position].encode())


def _array_entries(path: Path, source: BinaryIO) -> Iterator[Any]:
    """The entries after the array's `[`."""
    read, number, place = _Text(source), 0, 0
    try:
        while True:
            value, place = _next_entry(read, place, is_first=number == 0)
            if value is _END:
                return
            number += 1
            yield value
            if place > _CHUNK:
                read.drop(place)
                place = 0
    except json.JSONDecodeError as error:
        problem = f"broken JSON after entry {number}, before byte {read.byte_at(error.pos) + 1}: {error.msg}"
    except (UnicodeDecodeError, RecursionError) as error:
        problem = f"broken JSON after entry {number}: {_said(error)}"
    raise InputError(f"{path}: {problem}")


_END = object()


def _next_entry(read: _Text, place: int, is_first: bool) -> tuple[Any, int]:
    """The entry at or after `place` and where it ends; `_END` after the last. JSONDecodeError: neither is there."""
    while True:
        try:
            at = _skip_blank(read.text, place)
            if read.text[at : at + 1] == "]":
                _check_end(read, at + 1)
                return _END, at
            if not is_first:
                if read.text[at : at + 1] != ",":
                    raise json.JSONDecodeError("expected ',' or ']'", read.text, at)
                at = _skip_blank(read.text, at + 1)
            value, end = _decoder.raw_decode(read.text, at)
            if end < len(read.text):  # else a number might go on
                return value, end
            raise json.JSONDecodeError("the array does not end", read.text, end)
        except json.JSONDecodeError:
            if read.is_whole or len(read.text) - place > MAX_ENTRY_BYTES:
                raise
            read.more()


def _check_end(read: _Text, place: int) -> None:
    """JSONDecodeError: there is more than blanks."""
    while (place := _skip_blank(read.text, place)) == len(read.text) and not read.is_whole:
        read.more()
    if place < len(read.text):
        raise json.JSONDecodeError("there is more after the array", read.text, place)


def _skip_blank(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _BLANK:
        place += 1
    return place


def _line_entries(path: Path, source: BinaryIO) -> Iterator[Any]:
    number = 0
    while line := source.readline(MAX_ENTRY_BYTES + 1):
        number += 1
        if not line.strip():
            continue
        try:
            if len(line) > MAX_ENTRY_BYTES:
                raise InputError(f"{path}: line {number} has more than {MAX_ENTRY_BYTES} bytes")
            value = _decoder.decode(line.decode())
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: broken JSON at line {number}, column {error.colno}: {error.msg}") from None
        except (UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path}: broken JSON at line {number}: {_said(error)}") from None
        yield value


def _said(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
