"""The product without its background: a cut-out as it is, or a photograph whose border of one colour is removed."""

from contextlib import suppress

import numpy as np
from PIL import Image, ImageFilter

from adgen.errors import PairError
from adgen.images import ALPHA_THRESHOLD, product_box, product_placement

BORDER_TOLERANCE = 24  # largest difference per channel from the border's colour that still counts as border
BORDER_SHARE = 0.9  # share of the outermost pixels that must have the border's colour
KEPT_SHARE = (0.005, 0.95)  # a product outside these shares of the picture means that the removal went wrong
BORDER_SIDE = 2048  # pixels; larger pictures are reduced first, which keeps time and memory in bounds
MAX_TURNS = 100  # of the border's longest way in: a maze is no product picture


FRAME_SIDE = 7071  # pixels; larger cut-outs are reduced, or the square around a long one would have far more than MAX_PIXELS
NONE_CLEAR, FEW_CLEAR = 0.005, 0.1  # shares of clear pixels: below, a picture is opaque; below, it may be a photograph


def cut_out(picture: Image.Image) -> Image.Image:
    """The product as RGBA: `picture` itself where it is a cut-out, else its near-uniform border removed. PairError: no_cutout.

    A "cut-out" that is opaque everywhere, or nearly, is a photograph saved under the wrong name. One with few clear pixels may be a
    photograph with rounded corners: it is taken for that where it has a border of one colour.
    """
    clear = float((np.asarray(picture.getchannel("A")) <= ALPHA_THRESHOLD).mean()) if picture.mode == "RGBA" else 0.0
    if clear < NONE_CLEAR:
        return remove_border(picture)
    if clear < FEW_CLEAR:
        with suppress(PairError):
            return remove_border(picture)
    if max(picture.size) > FRAME_SIDE:
        picture = picture.copy()
        picture.thumbnail((FRAME_SIDE, FRAME_SIDE), Image.Resampling.LANCZOS)
    return picture


def check_product(picture: Image.Image) -> None:
    """PairError `no_cutout` unless `picture` holds a product that can be cut out and placed."""
    product_placement(cut_out(picture), 1.0)


def remove_border(picture: Image.Image) -> Image.Image:
    """RGBA without the near-uniform colour that reaches in from the edges; the product's edge is feathered.

    Areas of that colour inside the product stay; clear pixels of an RGBA picture belong to the border where they touch it, and
    stay clear elsewhere. PairError `no_cutout` where the border is not of one colour, or nearly nothing or nearly everything
    would be left.
    """
    picture = picture.convert("RGBA" if picture.mode == "RGBA" else "RGB")
    picture.thumbnail((BORDER_SIDE, BORDER_SIDE), Image.Resampling.LANCZOS)
    rgb = np.asarray(picture.convert("RGB"))
    visible = np.ones(rgb.shape[:2], bool)
    inner = (slice(None), slice(None))
    if picture.mode == "RGBA":
        left, top, right, bottom = product_box(picture)
        inner = slice(top, bottom + 1), slice(left, right + 1)
        visible = np.asarray(picture.getchannel("A")) > ALPHA_THRESHOLD
    outside = np.ones(rgb.shape[:2], bool)
    outside[inner] = _border(rgb[inner], visible[inner])
    product = Image.fromarray(np.where(outside, 0, 255).astype(np.uint8))
    # Median: specks of noise in the border go. Minimum: the outermost pixel is half border, a halo on any other colour.
    product = product.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.MinFilter(3))
    product = product.filter(ImageFilter.GaussianBlur(0.7))
    kept = float(np.asarray(product).mean()) / 255
    if not KEPT_SHARE[0] <= kept <= KEPT_SHARE[1]:
        raise PairError("no_cutout", f"no cut-out, and removing the border leaves {kept:.1%} of the picture")
    return Image.fromarray(np.dstack([rgb, np.where(visible, np.asarray(product), 0)]))


def _border(rgb: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """The mask (H, W) of the near-uniform colour that reaches in from the edges of (H, W, 3)."""
    sides = ((slice(None), 0), (slice(None), -1), 0, -1)
    edge = np.concatenate([rgb[side][visible[side]] for side in sides]).astype(np.int16)
    colour = np.median(edge, axis=0).astype(np.int16)
    uniform = float((np.abs(edge - colour).max(axis=1) <= BORDER_TOLERANCE).mean())
    if uniform < BORDER_SHARE:
        raise PairError("no_cutout", f"no cut-out, and only {uniform:.0%} of the picture's edge is of one colour")
    return _reached_from_edges((np.abs(rgb - colour).max(axis=2) <= BORDER_TOLERANCE) | ~visible)


def _reached_from_edges(open_: np.ndarray) -> np.ndarray:
    """The part of a (H, W) mask that is connected with the picture's edge in four directions."""
    reached = np.zeros_like(open_)
    reached[[0, -1]], reached[:, [0, -1]] = open_[[0, -1]], open_[:, [0, -1]]
    before = -1
    for _ in range(MAX_TURNS // 2):  # each round follows the ways in around two more turns
        if (count := int(reached.sum())) == before:
            return reached
        before = count
        reached = _spread_along_rows(reached, open_)
        reached = _spread_along_rows(reached.T, open_.T).T
    raise PairError("no_cutout", f"no cut-out, and the picture's border winds around more than {MAX_TURNS} turns")


def _spread_along_rows(reached: np.ndarray, open_: np.ndarray) -> np.ndarray:
    """Every horizontal run of open pixels that holds a reached one becomes reached as a whole."""
    starts = open_.copy()
    starts[:, 1:] &= ~open_[:, :-1]
    run = np.cumsum(starts.ravel())  # the run's number at each of its pixels
    hit = np.zeros(run[-1] + 1, dtype=bool)
    hit[run[reached.ravel()]] = True
    return open_ & hit[run].reshape(open_.shape)
