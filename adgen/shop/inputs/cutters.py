"""Cut-outs of products whose feed has none: a near-uniform border is removed by what is there (`adgen/cutouts.py`); for other
photographs a cutter of the operator's is asked.

A cutter is the name of an entry point (group adgen.cutters) or a command with {input} and {output}. Its cut-outs are files beside
the tables, named by the picture's content and the cutter, and made once. Each has a quality from 0 to 1: doubtful ones are shown on
a sheet, hopeless ones are not used, and their products have the reason `no_cutout`.
"""

import hashlib
import io
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from adgen.cutouts import cut_out
from adgen.errors import PairError, SettingsError
from adgen.images import read_picture
from adgen.shop.inputs.cutout_sheet import Shown, Worst
from adgen.shop.inputs.feeds.problems import Problems
from adgen.shop.inputs.locations import is_s3, read_bytes
from adgen.shop.inputs.web.pictures import write_whole

Cutter = Callable[[Image.Image], Image.Image]
"""A picture, RGB or RGBA -> the same size, RGBA, clear where the product is not."""
GROUP = "adgen.cutters"
BORDER = "border"
FOLDER = "cutouts/made"
DOUBTFUL = 0.6
HOPELESS = 0.2
SECONDS = 120  # that a command may take for a picture
_SIDE = 256


def open_cutter(name: str, weights: Path | None = None) -> Cutter | None:
    """None for `border`: what is there and nothing else. An entry point is called with the folder of its weights.

    SettingsError: no entry point of this name, and no command.
    """
    known = {each.name: each for each in entry_points(group=GROUP)}
    if name == BORDER:
        return None
    if name in known:
        try:
            return known[name].load()(weights)
        except ImportError as error:
            raise SettingsError(f"--cutter {name}: needs {error.name or error}; install adgen[cutter]") from None
    if "{input}" not in name or "{output}" not in name:
        raise SettingsError(
            f"--cutter {name}: is none of {', '.join([BORDER, *known])}, and no command with {{input}} and {{output}}, such as "
            "'mycutter {input} {output}'"
        )
    return Command(tuple(shlex.split(name)))


@dataclass(frozen=True)
class Command:
    """A program that reads the PNG {input} and writes the picture {output}. It is started without a shell."""

    words: tuple[str, ...]

    def __call__(self, picture: Image.Image) -> Image.Image:
        with tempfile.TemporaryDirectory(prefix="adgen-cut-") as folder:
            source, target = Path(folder) / "input.png", Path(folder) / "output.png"
            picture.save(source)
            words = [word.replace("{input}", str(source)).replace("{output}", str(target)) for word in self.words]
            try:
                done = subprocess.run(words, capture_output=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL)
            except FileNotFoundError:
                raise SettingsError(f"--cutter: there is no program {words[0]}") from None
            except (OSError, subprocess.TimeoutExpired) as error:
                raise PairError("no_cutout", f"the cutter {words[0]}: {error}") from None
            if done.returncode or not target.exists():
                said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
                raise PairError("no_cutout", f"the cutter {words[0]} ended with {done.returncode}: {said[0]:.200}")
            return read_picture(target, "cut-out")


class Quality(NamedTuple):
    """How good a cut-out looks, 0 to 1, and what is worst about it."""

    score: float
    worst: str


def quality_of(rgba: Image.Image) -> Quality:
    """The least of four: its share of the picture, how much of the picture's edge it touches, how much of it is half clear, and
    whether it is one piece."""
    from scipy import ndimage

    small = rgba.getchannel("A")
    small.thumbnail((_SIDE, _SIDE))
    alpha = np.asarray(small, np.float32) / 255
    solid = alpha > 0.5
    if not solid.any():
        return Quality(0.0, "nothing is left")
    edge = np.concatenate([solid[0], solid[-1], solid[:, 0], solid[:, -1]])
    pieces, _ = ndimage.label(solid, np.ones((3, 3)))
    share, half = float(solid.mean()), float(((alpha > 0.1) & (alpha < 0.9)).sum() / solid.sum())
    scores = {
        "small": _between(share, 0.005, 0.03),
        "nearly the whole picture": _between(share, 0.97, 0.85),
        "touches the picture's edge": _between(float(edge.mean()), 0.6, 0.1),
        "half clear": _between(half, 0.8, 0.3),
        "in pieces": _between(float(np.bincount(pieces.ravel())[1:].max() / solid.sum()), 0.4, 0.85),
    }
    worst = min(scores, key=scores.__getitem__)
    return Quality(round(scores[worst], 3), worst if scores[worst] < 1 else "")


def _between(value: float, zero: float, one: float) -> float:
    """0 at `zero`, 1 at `one`, a straight line between."""
    return float(np.clip((value - zero) / (one - zero), 0, 1))


class _Cut(NamedTuple):
    path: str | None
    """Relative to the tables; None: what is there removes the border, or there is no cut-out."""
    quality: Quality
    problem: PairError | None
    shown: Shown | None


@dataclass
class CutOuts:
    """Gives products without a cut-out one, or says why there is none."""

    dest: Path
    name: str
    cutter: Cutter | None
    workers: int = 4
    made: int = 0
    by_border: int = 0
    none: int = 0
    worst: Worst = field(default_factory=Worst)

    def __call__(self, batches: Iterator[pa.RecordBatch], problems: Problems) -> Iterator[pa.RecordBatch]:
        """The batches with the paths of cut-outs that were made."""
        with ThreadPoolExecutor(self.workers) as pool:
            for batch in batches:
                rows = batch.select(["image", "cutout", "file", "line", "product_id"]).to_pylist()
                wanted = [row for row in rows if row["cutout"] is None and not row["image"].lower().startswith("https://")]
                for row, cut in zip(wanted, pool.map(self._cut, [row["image"] for row in wanted]), strict=True):
                    row["cutout"] = cut.path
                    self._note(row, cut, problems)
                paths = pa.array([row["cutout"] for row in rows], pa.string())
                yield batch.set_column(batch.schema.get_field_index("cutout"), "cutout", paths)

    def _note(self, row: dict, cut: _Cut, problems: Problems) -> None:
        if cut.problem:
            reason = cut.problem.reason
            problems.add(row["file"], row["line"], "image", row["image"], reason, cut.problem.detail, skipped=False)
        self.none += cut.problem is not None
        self.made += cut.path is not None
        self.by_border += cut.problem is None and cut.path is None
        if cut.shown and cut.quality.score < DOUBTFUL:
            self.worst.add(row["product_id"], cut.quality.score, cut.quality.worst, cut.shown)

    def _cut(self, image: str) -> _Cut:
        nothing = Quality(0.0, "")
        try:
            data = read_bytes(image if is_s3(image) or image.startswith("/") else str(self.dest / image))
            picture = read_picture(data, "product picture")
        except PairError as error:
            return _Cut(None, nothing, error, None)
        try:
            plain = cut_out(picture)
            quality, problem = quality_of(plain), None
        except PairError as error:
            plain, quality, problem = picture, nothing, error
        if problem is None and (quality.score >= DOUBTFUL or self.cutter is None):
            return _Cut(None, quality, None, Shown.of(picture, plain))
        if self.cutter is None:
            return _Cut(None, quality, problem, None)
        return self._by_cutter(data, picture, _Cut(None, quality, problem, None if problem else Shown.of(picture, plain)))

    def _by_cutter(self, data: bytes, picture: Image.Image, before: _Cut) -> _Cut:
        """What the cutter makes, where that is better than `before`."""
        name = hashlib.sha256(data).hexdigest()[:32] + "-" + hashlib.sha256(self.name.encode()).hexdigest()[:8]
        path = f"{FOLDER}/{name[:2]}/{name}.png"
        try:
            made = read_picture(self.dest / path, "cut-out") if (self.dest / path).exists() else self._made(picture)
            quality = quality_of(made)
            if quality.score < HOPELESS:
                raise PairError("no_cutout", f"the cutter's cut-out has quality {quality.score:.2f}: {quality.worst}")
        except PairError as error:
            return before if before.problem is None else before._replace(problem=error)
        if before.problem is None and before.quality.score >= quality.score:
            return before
        if not (self.dest / path).exists():
            write_whole(self.dest / path, _png(made))
        return _Cut(path, quality, None, Shown.of(picture, made))

    def _made(self, picture: Image.Image) -> Image.Image:
        try:
            made = self.cutter(picture)
        except (PairError, SettingsError):
            raise
        except Exception as error:  # whatever a library raises on this picture
            raise PairError("no_cutout", f"the cutter: {type(error).__name__}: {error}") from None
        if made.mode != "RGBA" or made.size != picture.size:
            size = f"{made.width}x{made.height}"
            raise PairError("no_cutout", f"the cutter made {made.mode} {size} of {picture.width}x{picture.height}; expected RGBA")
        return made


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
