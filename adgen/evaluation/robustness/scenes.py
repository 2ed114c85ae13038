"""Scenes to measure an encoder on: drawn in the synthetic shop's styles, or put together from given tables."""

import heapq
from collections import Counter
from collections.abc import Iterator
from itertools import chain, cycle, islice
from operator import itemgetter

import numpy as np
from PIL import Image, ImageOps

from adgen.cutouts import cut_out
from adgen.errors import InputError, PairError
from adgen.evaluation.robustness.changes import Scene
from adgen.images import place_product, read_picture, square_frame
from adgen.records import unit_interval
from adgen.shop.inputs.locations import read_bytes
from adgen.shop.inputs.tables import Inputs, InputTable
from adgen.shop.synthetic.drawing.backgrounds import STYLES, draw_background
from adgen.shop.synthetic.drawing.products import KINDS, draw_cutout
from adgen.shop.synthetic.drawing.skins import COLOURS, PATTERNS
from adgen.shop.synthetic.draws import key_for

_SPARE = 2  # candidates for each picture, so that some may be unreadable


def drawn_scenes(number: int, side: int, seed: int) -> Iterator[Scene]:
    """`number` scenes, the shop's styles in turn; the same numbers give the same pictures, which no training has seen."""
    styles, key = list(STYLES), key_for("scene", seed)
    for index in range(number):
        rng = np.random.default_rng([key, index])
        background = draw_background(styles[index % len(styles)], side, rng)
        yield Scene(background, _drawn_product(side, rng), _drawn_product(side, rng), styles[index % len(styles)])


def _drawn_product(side: int, rng: np.random.Generator) -> Image.Image:
    kind, colour, pattern = (list(names)[rng.integers(len(names))] for names in (KINDS, COLOURS, PATTERNS))
    return draw_cutout(kind, colour, pattern, side, rng)


def table_scenes(inputs: Inputs, number: int, side: int, seed: int, problems: Counter) -> Iterator[Scene]:
    """At most `number` scenes: a reference creative as the background, each picture once, two products' cut-outs to set on it.

    Which ones is drawn by `seed`; where cut-outs are few they come again. Pictures that can't be read are counted in
    `problems`, as "references: reason". InputError when there are not two readable cut-outs.
    """
    backgrounds = _chosen(inputs["references"], ("image",), "image", _SPARE * number, seed)
    products = _chosen(inputs["products"], ("product_id", "image", "cutout", "scale"), "product_id", 2 * _SPARE * number, seed)
    cutouts = _readable(products, lambda row: _cutout(inputs, row, side), "products", problems)
    first = list(islice(cutouts, 2))
    if len(first) < 2:
        raise InputError(f"{inputs.uri}: table 'products': no two cut-outs can be read: {dict(problems)}")
    turning = cycle(chain(first, cutouts))
    for background in islice(_readable(backgrounds, lambda row: _background(inputs, row, side), "references", problems), number):
        yield Scene(background, next(turning), next(turning))


def _chosen(table: InputTable, columns: tuple[str, ...], key: str, number: int, seed: int) -> list[dict]:
    """Rows of a table in an order drawn by `seed`, at most `number`, one for each value of `key`; the table streams by."""
    seen: set[float] = set()

    def distinct() -> Iterator[tuple[float, dict]]:
        for batch in table.batches(columns):
            for row in batch.to_pylist():
                place = unit_interval("scene", seed, row[key])
                if place not in seen:
                    seen.add(place)
                    yield place, row

    return [row for _, row in heapq.nsmallest(number, distinct(), key=itemgetter(0))]


def _readable(rows: list[dict], read, table: str, problems: Counter) -> Iterator[Image.Image]:
    for row in rows:
        try:
            yield read(row)
        except PairError as error:
            problems[f"{table}: {error.reason}"] += 1


def _background(inputs: Inputs, row: dict, side: int) -> Image.Image:
    picture = read_picture(read_bytes(inputs.resolve(row["image"] or "")), "reference")
    return ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)


def _cutout(inputs: Inputs, row: dict, side: int) -> Image.Image:
    uri = row["cutout"] or row["image"] or ""
    frame = square_frame(cut_out(read_picture(read_bytes(inputs.resolve(uri)), "cut-out")))
    placed, _ = place_product(frame, row["scale"] if row["scale"] is not None else 1.0)
    return placed.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
