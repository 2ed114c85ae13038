"""Products of an XML feed (RSS, Atom, Meta's listings) as a stream. No DTD, no entities but XML's own five.

Memory holds one product. `<g:price>` is price, and comes before a `<price>` without that namespace; `<g:shipping><g:country>` is
shipping.country.
"""

from collections.abc import Callable, Iterator
from typing import Any
from xml.etree.ElementTree import ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from adgen.errors import InputError
from adgen.shop.inputs.feeds.sources import Source

ITEMS = frozenset({"item", "entry", "listing", "product"})
MAX_DEPTH = 40
MAX_ITEM = 4 * 2**20  # characters of one product
_CHUNK = 2**16
_GOOGLE = "base.google.com"


class _Products:
    """The parser's target: fills `rows`, of which a reader takes what is there."""

    def __init__(self, source: Source, normal: Callable[[str], str]):
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.line: Callable[[], int] = int
        self.found = 0
        self._source, self._normal = source, normal
        self._path: list[str] = []  # names of the open elements inside the product
        self._depth, self._item_at, self._size = 0, 0, 0
        self._text: list[str] = []
        self._google: dict[str, Any] = {}
        self._plain: dict[str, Any] = {}

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise InputError(f"{self._source.name}, line {self.line()}: elements lie deeper than {MAX_DEPTH}")
        space, _, name = tag.rpartition("}")
        if not self._item_at:
            if name.lower() in ITEMS and self._depth > 1:
                self._item_at, self._start = self._depth, self.line()
                self._google, self._plain, self._path, self._size = {}, {}, [], 0
            return
        self._path.append(self._normal(name))
        self._text = []
        if name == "link" and attributes.get("rel", "alternate") == "alternate" and "href" in attributes:
            self._keep(space, attributes["href"])

    def data(self, text: str) -> None:
        """Text of an element, in pieces."""
        if not self._item_at:
            return
        self._size += len(text)
        if self._size > MAX_ITEM:
            raise InputError(f"{self._source.name}, line {self._start}: a product has more than {MAX_ITEM} characters")
        self._text.append(text)

    def end(self, tag: str) -> None:
        """An element ends."""
        self._depth -= 1
        if not self._item_at:
            return
        if self._depth < self._item_at:
            self.rows.append((self._start, self._plain | self._google))
            self.found += 1
            self._item_at = 0
            return
        if text := "".join(self._text).strip():
            self._keep(tag.rpartition("}")[0], text)
        self._text = []
        self._path.pop()

    def close(self) -> None:
        """The document is read."""

    def _keep(self, space: str, text: str) -> None:
        values, name = self._google if _GOOGLE in space else self._plain, ".".join(self._path)
        self._size += len(name)
        add_value(values, name, text)


def add_value(row: dict[str, Any], name: str, value: Any) -> None:
    """Put a value under its name; several of one name become a list."""
    if name not in row:
        row[name] = value
    elif isinstance(before := row[name], list):
        before.append(value)
    else:
        row[name] = [before, value]


def xml_rows(source: Source, normal: Callable[[str], str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, values by normal name) of each product. InputError names the line of what is no XML, or is not allowed."""
    products = _Products(source, normal)
    parser = DefusedXMLParser(target=products, forbid_dtd=True)
    products.line = lambda: parser.parser.CurrentLineNumber
    with source.open() as file:
        try:
            fed = 0
            while chunk := file.read(_CHUNK):
                parser.feed(chunk)
                fed += len(chunk)
                if fed - parser.parser.CurrentByteIndex > MAX_ITEM:  # one tag or name without an end: expat keeps it whole
                    raise InputError(f"{source.name}, line {products.line()}: more than {MAX_ITEM} bytes without an end of a tag")
                yield from products.rows
                products.rows.clear()
            parser.close()
        except DefusedXmlException:
            where = f"{source.name}, line {products.line()}"
            raise InputError(f"{where}: a DTD or an entity is declared; feeds need none, and none is read") from None
        except ParseError as error:
            raise InputError(f"{source.name}: is not XML from here on: {error}") from None
        except (ValueError, LookupError) as error:  # an encoding that expat does not know
            raise InputError(f"{source.name}, line {products.line()}: {error}") from None
    if not products.found:
        raise InputError(f"{source.name}: has no {', '.join(sorted(ITEMS))} element; expected RSS, Atom or Meta's listings")
