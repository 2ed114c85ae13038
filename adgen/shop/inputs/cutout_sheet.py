"""The sheet of doubtful cut-outs: one HTML file that opens from disk, the worst first, each beside its picture."""

import base64
import heapq
import html
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

SHOWN = 200
_SIDE = 160
_STYLE = (
    "body{font:14px sans-serif;margin:24px}div{display:inline-block;margin:8px;vertical-align:top;width:340px}"
    "img{max-width:160px;background:repeating-conic-gradient(#bbb 0 25%,#eee 0 50%) 0 0/16px 16px}p{margin:4px 0}"
)


class Shown(NamedTuple):
    """Two small pictures as files: what was given, and what was cut out."""

    picture: bytes
    cutout: bytes

    @classmethod
    def of(cls, picture: Image.Image, cutout: Image.Image) -> "Shown":
        return cls(_small(picture), _small(cutout))


def _small(picture: Image.Image) -> bytes:
    copy, data = picture.copy(), io.BytesIO()
    copy.thumbnail((_SIDE, _SIDE))
    copy.save(data, "WEBP", quality=80)
    return data.getvalue()


class Worst:
    """The doubtful ones with the lowest quality; the others are counted."""

    def __init__(self) -> None:
        self.count = 0
        self._kept: list[tuple[float, int, str, str, Shown]] = []

    def add(self, product_id: str, score: float, worst: str, shown: Shown) -> None:
        """One doubtful cut-out."""
        self.count += 1
        entry = (-score, -self.count, product_id, worst, shown)
        if len(self._kept) < SHOWN:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def write(self, path: Path) -> None:
        """The sheet."""
        cards = "".join(
            f"<div><img src='{_data(shown.picture)}'> <img src='{_data(shown.cutout)}'><p>{html.escape(product_id)}</p>"
            f"<p>quality {-score:.2f}: {html.escape(worst)}</p></div>"
            for score, _, product_id, worst, shown in sorted(self._kept, key=lambda entry: (-entry[0], -entry[1]))
        )
        head = f"<!doctype html><meta charset='utf-8'><title>Doubtful cut-outs</title><style>{_STYLE}</style>"
        path.write_text(f"{head}<h1>{self.count} doubtful cut-outs, the worst {len(self._kept)}</h1>{cards}", encoding="utf-8")


def _data(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"
