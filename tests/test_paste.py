"""adgen/finishing/paste.py: the real product at its own resolution, where the model saw it, never stretched."""

import numpy as np
import pytest
from PIL import Image

from adgen.errors import PairError
from adgen.finishing.paste import compose
from adgen.images import on_white, place_product, square_frame

GREEN, GREY = (0, 200, 0), (90, 90, 90)


def scene(side=64, colour=GREY) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def disc(width: int, height: int, centre: tuple[int, int], radius: int) -> Image.Image:
    """A green disc with a soft edge; what is transparent is black underneath."""
    y, x = np.mgrid[:height, :width]
    alpha = np.clip(radius + 0.5 - np.hypot(x - centre[0], y - centre[1]), 0, 1)
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[alpha > 0, :3] = GREEN
    rgba[..., 3] = alpha * 255
    return Image.fromarray(rgba)


def green_box(picture: Image.Image) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of pixels that are more green than grey, exclusive ends."""
    values = np.asarray(picture).astype(int)
    rows, columns = np.nonzero((values[..., 1] - values[..., 0]) > 100)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("size", [(300, 300), (240, 320), (400, 150)])
@pytest.mark.parametrize("scale", [1.0, 0.6, 0.25])
def test_product_lies_where_the_model_saw_it(size, scale):
    cutout = disc(*size, (size[0] // 2 + 20, size[1] // 2 - 10), min(size) // 2 - 25)
    side = 512
    seen = on_white(place_product(square_frame(cutout), scale)[0]).resize((side, side), Image.Resampling.BICUBIC)
    pasted = compose(scene(), cutout, scale, side, side).picture
    frame_pixel = side / max(size)  # the published placement truncates to whole pixels of the frame
    assert np.abs(np.subtract(green_box(pasted), green_box(seen))).max() <= 1 + 1.5 * frame_pixel


@pytest.mark.parametrize("size", [(512, 512), (410, 512), (512, 384), (960, 540)])
@pytest.mark.parametrize("frame", [(200, 200), (120, 200), (200, 90)])
def test_nothing_is_stretched(size, frame):
    """A disc stays a disc in the product and in the background, whatever the aspects are."""
    cutout = disc(*frame, (frame[0] // 2, frame[1] // 2), 30)
    left, top, right, bottom = green_box(compose(scene(), cutout, 1.0, *size).picture)
    assert abs((right - left) - (bottom - top)) <= 2
    assert right - left == pytest.approx(61 * max(size) / max(frame), rel=0.02, abs=2)
    invisible = Image.new("RGBA", (200, 200), (0, 0, 0, 0))
    invisible.paste((0, 0, 0, 51), (98, 98, 102, 102))
    drawn = Image.alpha_composite(Image.new("RGBA", (64, 64), (*GREY, 255)), disc(64, 64, (32, 32), 15)).convert("RGB")
    left, top, right, bottom = green_box(compose(drawn, invisible, 1.0, *size).picture)
    assert abs((right - left) - (bottom - top)) <= 2


def test_product_keeps_its_own_resolution():
    """One-pixel stripes survive when output and cut-out have the same size, though the background has 64 pixels."""
    cutout = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    stripes = np.zeros((100, 100, 4), np.uint8)
    stripes[..., 3] = 255
    stripes[:, ::2, :3] = 255
    cutout.paste(Image.fromarray(stripes), (80, 70))
    pasted = np.asarray(compose(scene(), cutout, 1.0, 256, 256).picture)
    np.testing.assert_array_equal(pasted[70:170, 80:180], stripes[..., :3])


def test_no_dark_fringe_around_a_white_product_on_white():
    cutout = np.zeros((301, 301, 4), np.uint8)  # black under the transparency, as most cut-out tools leave it
    alpha = np.asarray(disc(301, 301, (150, 150), 90))[..., 3]
    cutout[alpha > 0, :3] = 255
    cutout[..., 3] = alpha
    for side in (128, 512, 700):
        pasted = np.asarray(compose(scene(64, (255, 255, 255)), Image.fromarray(cutout), 0.5, side, side).picture)
        assert pasted.min() >= 253


def test_soft_shadow_outside_the_alpha_box_is_not_cut_off():
    cutout = disc(200, 200, (100, 100), 40)
    cutout.paste((0, 0, 0, 40), (60, 141, 141, 160))
    pasted = np.asarray(compose(scene(), cutout, 1.0, 200, 200).picture)
    assert pasted[155, 100].max() < GREY[0]


@pytest.mark.parametrize("x", [45, 100, 155])
def test_window_of_another_aspect_moves_to_hold_the_product(x):
    composite = compose(scene(), disc(200, 200, (x, 100), 40), 1.0, 300, 500)
    assert composite.product_inside > 0.999
    left, top, right, bottom = green_box(composite.picture)
    assert abs((right - left) - (bottom - top)) <= 1


def test_background_of_another_aspect_is_cut_around_the_centre():
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3)))
    cutout = disc(100, 100, (50, 50), 5)
    cut = np.asarray(compose(ramp, cutout, 1.0, 256, 512).picture)[10]
    whole = np.asarray(compose(ramp, cutout, 1.0, 512, 512).picture)[10]
    assert np.abs(cut.astype(int) - whole[128:384]).max() <= 2


def test_shares_of_the_product_are_measured():
    box = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    box.paste((*GREEN, 255), (0, 25, 100, 75))
    whole = compose(scene(), box, 1.0, 200, 200)
    assert whole.product_share == pytest.approx(0.5, abs=0.01)
    assert whole.product_inside == pytest.approx(1.0, abs=1e-6)
    half = compose(scene(), box, 1.0, 100, 200)
    assert half.product_inside == pytest.approx(0.5, abs=0.01)


def test_bad_input():
    with pytest.raises(ValueError, match="64x32"):
        compose(Image.new("RGB", (64, 32)), disc(50, 50, (25, 25), 10), 1.0, 128, 128)
    with pytest.raises(PairError, match="no_cutout"):
        compose(scene(), Image.new("RGBA", (50, 50), (0, 0, 0, 0)), 1.0, 128, 128)
    with pytest.raises(PairError, match="invalid_scale"):
        compose(scene(), disc(50, 50, (25, 25), 10), 0.0, 128, 128)
