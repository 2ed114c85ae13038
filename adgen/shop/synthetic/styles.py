"""The styles that a shop's pictures are in, and whose pictures they are: ten drawn ones, many drawn ones, or photographs.

A style is named: `wood` (one of ten), `train-17` (the seventeenth of the continuous families that the split `train` has),
`photo-Mango` (a folder of photographs). A name and a generator give a picture.
"""

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from adgen.errors import InputError, SettingsError
from adgen.images import read_picture
from adgen.records import digest
from adgen.shop.synthetic.drawing.backgrounds import STYLES, draw_background, exposed
from adgen.shop.synthetic.drawing.families import draw_family, family
from adgen.shop.synthetic.draws import key_for

SETS = ("ten", "many")
_PHOTO = "photo-"
_TEN_OFTEN, _CLASS_OFTEN = 60, 8  # slots of a style of these where there are many others
PHOTO_SHARE = (0.5, 0.74)  # of the frame that a photographed product's longer side takes
_SMALLEST_CROP = 0.7  # of a photograph's shorter side


@dataclass(frozen=True)
class StyleSet:
    """Which styles a shop has. A product's style is drawn among `slots`: one that stands there often is drawn often."""

    sets: tuple[str, ...] = ("ten",)
    many: int = 0
    """How many of the continuous families."""
    photographs: Path | None = None
    """A folder with backgrounds/CLASS/*.jpg, cutouts/*.png and products.json."""
    split: str | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every style once."""
        return tuple(dict.fromkeys(self.slots))

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """Beside many styles each of the ten stands often, and so does each class of photographs."""
        many = [f"{self.split or 'shop'}-{number}" for number in range(self.many if "many" in self.sets else 0)]
        ten, photographs = list(STYLES) if "ten" in self.sets else [], [f"{_PHOTO}{name}" for name in self.classes]
        return tuple([*many, *ten * _TEN_OFTEN, *photographs * _CLASS_OFTEN] if many else [*ten, *photographs])

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Classes of photographs; a fifth of them is eval's."""
        if self.photographs is None:
            return ()
        found = sorted(path.name for path in (self.photographs / "backgrounds").glob("*") if path.is_dir())
        chosen = tuple(name for name in found if _in_split(self.split, "class", name))
        if not chosen:
            raise InputError(
                f"{self.photographs}: no backgrounds/CLASS of the split {self.split}: at least five classes are needed"
            )
        return chosen

    @cached_property
    def cutouts(self) -> tuple[tuple[str, str], ...]:
        """(path, kind) of photographed products; a fifth of them is eval's."""
        if self.photographs is None:
            return ()
        return _cutouts(self.photographs, self.split)

    def background(self, style: str, side: int, rng: np.random.Generator) -> Image.Image:
        """One picture of a style, RGB `side` x `side`."""
        if style in STYLES:
            return draw_background(style, side, rng)
        if style.startswith(_PHOTO):
            return _photographed(self.photographs / "backgrounds" / style.removeprefix(_PHOTO), side, rng)
        split, number = style.rsplit("-", 1)
        return exposed(draw_family(_family(key_for("family", split, int(number))), rng), side, rng)

    def photographed_cutout(self, number: int, side: int, rng: np.random.Generator) -> Image.Image:
        """A photographed product in its place in the frame, RGBA."""
        path = self.photographs / self.cutouts[number][0]
        with Image.open(path) as file:
            product = file.convert("RGBA")
        product = product.crop(product.getchannel("A").getbbox())
        if rng.random() < 0.5:
            product = product.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scale = rng.uniform(*PHOTO_SHARE) * side / max(product.size)
        size = max(2, round(product.width * scale)), max(2, round(product.height * scale))
        frame = Image.new("RGBA", (side, side))
        place = rng.uniform(0.46, 0.54) * side - size[0] / 2, rng.uniform(0.46, 0.54) * side - size[1] / 2
        frame.paste(product.resize(size, Image.Resampling.LANCZOS), (round(place[0]), round(place[1])))
        return frame


TEN = StyleSet()


def style_set(sets: tuple[str, ...], many: int, photographs: Path | None, split: str | None) -> StyleSet:
    """A checked StyleSet; SettingsError names what is wrong."""
    if bad := [name for name in sets if name not in SETS]:
        raise SettingsError(f"synth: styles: expected some of {', '.join(SETS)}, found {bad[0]!r}")
    if not sets and photographs is None:
        raise SettingsError("synth: styles: none are named, and no photographs")
    if photographs is not None and not (photographs / "backgrounds").is_dir():
        raise SettingsError(
            f"synth: photographs: {photographs}/backgrounds: no such folder (backgrounds/CLASS/*.jpg, cutouts/*.png)"
        )
    return StyleSet(sets, many, photographs, split)


@lru_cache(maxsize=4096)
def _family(seed: int):
    return family(seed % 2**32)


def _photographed(folder: Path, side: int, rng: np.random.Generator) -> Image.Image:
    """A square somewhere in one of the folder's photographs, mirrored by chance, lit a little differently."""
    files = _files(folder)
    picture = _opened(files[rng.integers(len(files))])
    crop = round(min(picture.size) * rng.uniform(_SMALLEST_CROP, 1.0))
    left, top = (int(rng.integers(0, length - crop + 1)) for length in picture.size)
    picture = picture.crop((left, top, left + crop, top + crop)).resize((side, side), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    gain = rng.uniform(0.92, 1.06)
    return picture.point(lambda value: min(255, value * gain))


@lru_cache(maxsize=256)
def _files(folder: Path) -> tuple[Path, ...]:
    found = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")))
    if not found:
        raise InputError(f"{folder}: no pictures")
    return found


@lru_cache(maxsize=2048)
def _opened(path: Path) -> Image.Image:
    return read_picture(path, "background").convert("RGB")


@lru_cache(maxsize=4)
def _cutouts(folder: Path, split: str | None) -> tuple[tuple[str, str], ...]:
    rows = json.loads((folder / "products.json").read_text(encoding="utf-8"))
    return tuple((row["cutout"], row["kind"]) for row in rows if _in_split(split, "cutout", row["cutout"]))


def _in_split(split: str | None, use: str, name: str) -> bool:
    return split is None or (int(digest("photograph", use, name)[:8], 16) % 5 == 0) == (split == "eval")
