"""What the workers of `pretraining_examples` do with a part: read its pictures, encode them, write its file.

A row whose picture cannot be read becomes no example; its reason is counted in the part's metadata.
"""

import io
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from adgen.errors import PairError
from adgen.finishing.finish import ProductFacts, product_cutout
from adgen.images import read_picture, square_frame
from adgen.on_ray.rows import Row
from adgen.on_ray.training.run_folder import on_this_node
from adgen.shop.inputs.locations import read_bytes
from adgen.shop.inputs.tables import Inputs
from adgen.shop.similarity import cosines, embed_titles
from adgen.shop.synthetic.styles import StyleSet
from adgen.training.example_files import ExampleFolder, part_name


class Maker:
    """Base: a todo part's rows -> examples of `schema`."""

    schema: pa.Schema

    def __init__(self, folder: str, inputs: Inputs):
        self.folder, self.inputs = folder, inputs

    def make(self, part: int) -> None:
        """Read `todo/part`, write `part`."""
        folder = ExampleFolder(self.folder)
        reasons: Counter = Counter()
        made = []
        for row in folder.read(f"todo/{part_name(part)}").to_pylist():
            try:
                made.append(self.example(row))
            except PairError as error:
                reasons[error.reason] += 1
        table = pa.Table.from_pylist(self.finish(made), self.schema)
        metadata = {f"reason:{name}": str(count) for name, count in reasons.items()}
        folder.write(part_name(part), table.replace_schema_metadata(metadata))

    def example(self, row: Row) -> Row:
        """One row's example; PairError when it cannot be one."""
        raise NotImplementedError

    def finish(self, rows: list[Row]) -> list[Row]:
        """What is better done for all rows of a part together."""
        return rows

    def picture(self, uri: str) -> Image.Image:
        """The picture of a row's URI."""
        return read_picture(read_bytes(self.inputs.resolve(uri)))

    def facts(self, row: Row) -> ProductFacts:
        """The product of a row, with its file's bytes."""
        data = read_bytes(self.inputs.resolve(row["cutout"] or row["image"]))
        kind = "cutout" if row["cutout"] else "image"
        return ProductFacts(title=row.get("title") or row.get("product_title") or "", scale=row["scale"], **{kind: data})


class _WithModel(Maker):
    """A maker that encodes pictures; the tokenizer is loaded when it is first used."""

    def __init__(self, folder: str, inputs: Inputs, model: str):
        super().__init__(folder, inputs)
        self.model = model
        self._parts = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_parts": None}

    @property
    def parts(self) -> tuple:
        """(tokenizer, config)."""
        from adgen.model.checkpoint import load_image_tokenizer

        if self._parts is None:
            self._parts = load_image_tokenizer(on_this_node(self.model))
        return self._parts

    def codes(self, pictures: list[Image.Image], pixels: Callable) -> list[bytes]:
        """Each picture's codes, uint16 little-endian; `pixels` turns a picture into the tokenizer's input."""
        import torch

        from adgen.generation.pictures import picture_codes

        out = []
        for start in range(0, len(pictures), 16):
            batch = torch.stack([pixels(picture) for picture in pictures[start : start + 16]])
            out += [row.astype("<u2").tobytes() for row in picture_codes(batch, self.parts[0]).numpy()]
        return out


class ClickMaker(_WithModel):
    """Clicked products: their title and the codes of their picture."""

    schema = pa.schema([("product", pa.string()), ("title", pa.string()), ("codes", pa.binary())])

    def example(self, row: Row) -> Row:
        return {"product": row["product_id"], "title": row["title"], "picture": self.picture(row["image"])}

    def finish(self, rows: list[Row]) -> list[Row]:
        from adgen.generation.pictures import history_pixels

        config = self.parts[1]
        codes = self.codes([row["picture"] for row in rows], lambda picture: history_pixels(picture, config.image))
        return [row | {"codes": each} for row, each in zip(rows, codes, strict=True)]


class ExampleMaker(_WithModel):
    """Language examples: the reference's codes, the product on white, and how close each click is."""

    def __init__(self, folder: str, inputs: Inputs, model: str):
        from adgen.training.batches import EXAMPLES

        super().__init__(folder, inputs, model)
        self.schema = EXAMPLES

    def example(self, row: Row) -> Row:
        from adgen.generation.pictures import condition_pixels
        from adgen.model.image_tokens import to_uint8
        from adgen.training.pictures import as_png

        product = self.facts(row)
        pixels = condition_pixels(square_frame(product_cutout(product)), product.scale or 1.0, self.parts[1].foreground)
        condition = as_png(to_uint8(pixels[None])[0].numpy())
        return row | {"condition": condition, "picture": self.picture(row["reference"]), "clicks": with_similarities(row)}

    def finish(self, rows: list[Row]) -> list[Row]:
        from adgen.generation.pictures import square_pixels

        size = self.parts[1].image.image_size
        codes = self.codes([fitted(row["picture"], size) for row in rows], lambda picture: square_pixels(picture, size))
        return [row | {"codes": each} for row, each in zip(rows, codes, strict=True)]


class PictureMaker(Maker):
    """Pictures for the tokenizer, cut to a square at the model's size."""

    schema = pa.schema([("picture", pa.binary())])

    def __init__(self, folder: str, inputs: Inputs, size: int):
        super().__init__(folder, inputs)
        self.size = size

    def example(self, row: Row) -> Row:
        from adgen.training.pictures import as_png

        return {"picture": as_png(fitted(self.picture(row["image"]), self.size))}


class CutoutMaker(Maker):
    """Products for the PBS encoder's scenes, as RGBA."""

    schema = pa.schema([("cutout", pa.binary())])

    def __init__(self, folder: str, inputs: Inputs, size: int):
        super().__init__(folder, inputs)
        self.size = size

    def example(self, row: Row) -> Row:
        frame = square_frame(product_cutout(self.facts(row))).resize((self.size, self.size), Image.Resampling.LANCZOS)
        if frame.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox() is None:
            raise PairError("no_cutout", "nothing of it is left at the encoder's size")
        out = io.BytesIO()
        frame.save(out, "PNG", compress_level=1)
        return {"cutout": out.getvalue()}


class BackgroundMaker(Maker):
    """Backgrounds: drawn in `styles`, a style a group; or, without any, the references themselves, each a group of its own."""

    schema = pa.schema([("group", pa.int64()), ("background", pa.binary())])

    def __init__(self, folder: str, inputs: Inputs, size: int, styles: StyleSet | None, seed: int):
        super().__init__(folder, inputs)
        self.size, self.styles, self.seed = size, styles, seed

    def example(self, row: Row) -> Row:
        from adgen.training.pictures import as_png

        number = row["number"]
        if self.styles is None:
            return {"group": number, "background": as_png(fitted(self.picture(row["image"]), self.size))}
        style = self.styles.slots[number % len(self.styles.slots)]
        picture = self.styles.background(style, self.size, np.random.default_rng([self.seed, number]))
        return {"group": self.styles.names.index(style), "background": as_png(picture)}


def with_similarities(row: Row) -> list[Row]:
    """The row's clicks, each with its title's similarity to the product's."""
    clicks = row["clicks"] or []
    titles = _embeddings((row["product_title"] or "", *(click["title"] for click in clicks)))
    close = cosines(titles, np.zeros(len(clicks), np.int64), np.arange(1, len(clicks) + 1))
    return [click | {"close": float(each)} for click, each in zip(clicks, close, strict=True)]


@lru_cache(maxsize=1024)
def _embeddings(titles: tuple[str, ...]) -> np.ndarray:
    return embed_titles(titles).astype(np.float16)


def fitted(picture: Image.Image, size: int) -> Image.Image:
    """RGB `size` x `size`: the middle square of a picture."""
    return ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
