"""Pictures of a feed that lie on the web, fetched once into the folder of the tables.

A file's name is a hash of its link: what is there is not fetched again, so that the same command goes on where it stopped. A shop
that changes a picture gives it another link, as channels ask for.
"""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from adgen.errors import FetchError, InputError
from adgen.images import format_of
from adgen.shop.inputs.feeds.problems import Problems
from adgen.shop.inputs.web.fetcher import Fetcher

FOLDER = "images/web"
_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff", "AVIF": "avif"}
COLUMNS = ("image", "cutout")


@dataclass
class WebPictures:
    """Gives rows whose pictures are links the files that were fetched."""

    dest: Path
    fetcher: Fetcher | None
    """None: only what an earlier import fetched is taken."""
    workers: int = 16
    max_bad_share: float = 0.1
    fetched: int = 0
    there: int = 0
    """Fetched by an earlier import."""
    failed: int = 0

    def __call__(self, batches: Iterator[pa.RecordBatch], problems: Problems) -> Iterator[pa.RecordBatch]:
        """The batches with local pictures, links where there are none. InputError after the last where too many failed."""
        with ThreadPoolExecutor(self.workers) as pool:
            for batch in batches:
                for column in COLUMNS:
                    links = batch.column(column).to_pylist()
                    wanted = {link for link in links if link and link.lower().startswith("https://")}
                    there = {link: path for link in wanted if (path := self._fetched_before(link))}
                    new = dict(pool.map(self._fetch, wanted - there.keys())) if self.fetcher else {}
                    self._count(there, new)
                    self._report(batch, column, new, problems)
                    kept = [_path((there | new).get(link), link, column) for link in links]
                    batch = batch.set_column(batch.schema.get_field_index(column), column, pa.array(kept, pa.string()))
                yield batch
        asked = self.fetched + self.there + self.failed
        if self.failed > self.max_bad_share * asked:
            raise InputError(
                f"{self.failed} of {asked} pictures could not be fetched, more than --max-bad-share {self.max_bad_share:g}: "
                f"{problems.examples[-1]}. Tables are as they were before; what was fetched stays, and the same command goes on"
            )

    def _fetched_before(self, link: str) -> str | None:
        place = _place(link)
        if not os.path.isdir(os.path.join(self.dest, os.path.dirname(place))):  # one question instead of seven
            return None
        paths = (f"{place}.{ending}" for ending in _ENDINGS.values())
        return next((path for path in paths if os.path.exists(os.path.join(self.dest, path))), None)

    def _fetch(self, link: str) -> tuple[str, str | FetchError]:
        """(the link, its file relative to the tables, or why there is none)."""
        try:
            data = self.fetcher.picture(link)
        except FetchError as error:
            return link, error
        path = f"{_place(link)}.{_ENDINGS[format_of(data)]}"
        write_whole(self.dest / path, data)
        return link, path

    def _count(self, there: dict[str, str], new: dict[str, str | FetchError]) -> None:
        failures = sum(isinstance(outcome, FetchError) for outcome in new.values())
        self.failed += failures
        self.fetched += len(new) - failures
        self.there += len(there)

    def _report(self, batch: pa.RecordBatch, column: str, found: dict[str, str | FetchError], problems: Problems) -> None:
        for row in batch.select(["file", "line", column]).to_pylist():
            outcome = found.get(row[column])
            if isinstance(outcome, FetchError):
                problems.add(row["file"], row["line"], column, row[column], outcome.reason, outcome.detail, skipped=False)


def _place(link: str) -> str:
    stem = hashlib.sha256(link.encode()).hexdigest()[:40]
    return f"{FOLDER}/{stem[:2]}/{stem}"


def _path(found: str | FetchError | None, link: str | None, column: str) -> str | None:
    """What the row names: a cut-out that is not there is none, and the picture's background is removed."""
    if isinstance(found, str) or link is None or not link.lower().startswith("https://"):
        return found if isinstance(found, str) else link
    return link if column == "image" else None


def write_whole(path: Path, data: bytes) -> None:
    """The file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)
