"""adgen/evaluation/pictures: tensors, product_fidelity, copies: is the product there, what is behind it, is it a copy."""

import io

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.models import small_model

from adgen.errors import PairError
from adgen.evaluation.pictures.backgrounds import OWN_ADAPTER, background_features, load_dinov2, own_adapter
from adgen.evaluation.pictures.copies import nearest_history
from adgen.evaluation.pictures.product_fidelity import product_scores
from adgen.evaluation.pictures.tensors import as_pixels, placed_product, stacked
from adgen.finishing.paste import compose
from adgen.shop.synthetic.drawing.backgrounds import STYLES, draw_background, set_on_background
from adgen.shop.synthetic.drawing.products import draw_cutout

SIDE = 128


def scenes(number: int = 10) -> list[tuple[Image.Image, Image.Image]]:
    """(background, cut-out) in every style."""
    rng = np.random.default_rng(0)
    kinds = ("mug", "t-shirt", "chair", "watch", "umbrella")
    return [
        (draw_background(list(STYLES)[at % 10], SIDE, rng), draw_cutout(kinds[at % 5], "red", "striped", SIDE, rng))
        for at in range(number)
    ]


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def fidelity(pictures: list[Image.Image], cutouts: list[Image.Image]) -> dict[str, float]:
    return {name: float(v.mean()) for name, v in product_scores(stacked(pictures, 64), stacked(cutouts, 64)).items()}


# -- the product -----------------------------------------------------------------------------------------------


def test_the_product_s_place_is_finishing_s_at_every_shape():
    _, cutout = scenes(1)[0]
    for width, height in ((128, 128), (160, 96), (90, 200)):
        product = placed_product(cutout, 0.5, width, height)
        grey = compose(Image.new("RGB", (4, 4), (90, 120, 40)), cutout, 0.5, width, height).picture
        again = Image.new("RGB", (width, height), (90, 120, 40))
        again.paste(product, (0, 0), product)
        assert product.size == (width, height)
        difference = np.abs(np.asarray(grey, int) - np.asarray(again, int))
        assert difference.mean() < 0.05
        assert difference.max() < 8  # where Lanczos overshoots, finishing cuts what pasting twice cuts differently
    with pytest.raises(PairError, match="no_cutout"):
        placed_product(Image.new("RGBA", (8, 8)), 0.5, 16, 16)


def test_transparent_pixels_do_not_darken_a_reduced_product():
    white = np.zeros((8, 8, 4), np.uint8)
    white[:, :3] = 255  # the edge falls inside a reduced pixel
    pixels = as_pixels(Image.fromarray(white), 4)
    assert pixels.shape == (4, 4, 4)
    assert torch.all(pixels[:3, :, 1] == 1)
    assert pixels[3, 0].tolist() == pytest.approx([1, 0.5, 0, 0], abs=0.01)


def test_fidelity_tells_a_kept_product_from_a_lost_one():
    backgrounds, cutouts = zip(*scenes(), strict=True)
    kept = fidelity([set_on_background(cutout, background) for background, cutout in scenes()], cutouts)
    worn = fidelity([jpeg(set_on_background(cutout, background), 40) for background, cutout in scenes()], cutouts)
    lost = fidelity(list(backgrounds), cutouts)
    assert kept["product_iou"] > 0.95
    assert kept["product_distance"] < 0.02
    assert kept["product_spill"] < 0.05
    assert worn["product_iou"] > 0.85
    assert lost["product_iou"] < 0.2
    assert lost["product_distance"] > 0.15


def test_a_product_that_grows_spills_and_one_that_is_half_there_has_half_the_mask():
    grown, half, cutouts = [], [], []
    for background, cutout in scenes():
        larger = cutout.resize((150, 150)).crop((11, 13, 139, 141))
        grown.append(Image.composite(larger.convert("RGB"), background, larger.getchannel("A")))
        whole = Image.composite(cutout.convert("RGB"), background, cutout.getchannel("A"))
        _, top, _, bottom = cutout.getchannel("A").getbbox()
        whole.paste(background.crop((0, 0, SIDE, (top + bottom) // 2)), (0, 0))
        half.append(whole)
        cutouts.append(cutout)
    assert fidelity(grown, cutouts)["product_spill"] > 0.07
    assert 0.3 < fidelity(half, cutouts)["product_iou"] < 0.7
    assert fidelity(half, cutouts)["product_spill"] < 0.01


def test_a_product_that_fills_the_frame_and_one_that_is_not_there():
    picture = torch.rand(1, 3, 32, 32)
    full = torch.cat((picture, torch.ones(1, 1, 32, 32)), 1)
    found = product_scores(picture, full)
    assert {name: round(float(value), 6) for name, value in found.items()} == {
        "product_iou": 1.0,
        "product_distance": 0.0,
        "product_spill": 0.0,
    }
    with pytest.raises(ValueError, match="product 0 has no visible pixel"):
        product_scores(picture, full * 0)


# -- backgrounds -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder)
    return load_dinov2(folder, side=60), own_adapter(small_model())


def test_a_report_can_say_whose_patches_they_are(encoders):
    public, own = encoders
    assert public.name.startswith("DINOv2 ")
    assert own.name == OWN_ADAPTER
    assert public.side == 56, "a multiple of the patches"
    for encoder in encoders:
        patches = encoder.patches(torch.rand(2, 3, encoder.side, encoder.side))
        assert patches.dim() == 4
        assert patches.shape[1] == patches.shape[2] == 4


def test_background_features_do_not_see_the_product(encoders):
    for encoder in encoders:
        pixels = torch.rand(2, 3, encoder.side, encoder.side, generator=torch.Generator().manual_seed(0))
        product = torch.zeros(2, encoder.side, encoder.side)
        product[:, 10:40, 10:40] = 1
        other = torch.where(product[:, None] > 0, 1 - pixels, pixels)
        features, behind = background_features(encoder, pixels, product)
        assert torch.allclose(features, background_features(encoder, other, product)[0], atol=1e-5)
        assert behind.all()
        assert torch.allclose(features.norm(dim=1), torch.ones(2))
        seen = background_features(encoder, pixels, product * 0)[0]
        assert not torch.allclose(seen, features, atol=1e-3), "where nothing is hidden, the product is background"


def test_a_picture_without_background_is_told_and_is_no_nan(encoders):
    public, _ = encoders
    features, behind = background_features(public, torch.rand(1, 3, 56, 56), torch.ones(1, 56, 56))
    assert behind.tolist() == [False]
    assert torch.equal(features, torch.zeros_like(features))


# -- copies ----------------------------------------------------------------------------------------------------


def test_a_worn_copy_of_a_clicked_picture_is_found_and_its_style_is_no_copy():
    rng = np.random.default_rng(1)
    copied, others = [], []
    for style in STYLES:
        mine, theirs = (draw_cutout(kind, "blue", "plain", SIDE, rng) for kind in ("mug", "hat"))
        history = [set_on_background(theirs, draw_background(style, SIDE, rng)) for _ in range(4)]
        copy = jpeg(history[2].crop((4, 2, 124, 122)).resize((64, 64)).resize((SIDE, SIDE)), 50)
        new = draw_background(style, SIDE, rng)
        for background, found in ((copy, copied), (new, others)):
            picture = Image.composite(mine.convert("RGB"), background, mine.getchannel("A"))
            product = stacked([mine], SIDE)[:, 3]
            found.append(nearest_history(stacked([picture], SIDE), product, stacked(history, SIDE)[None], torch.ones(1, 4) > 0))
    assert sum(bool(each.copied) for each in copied) >= 8
    assert sum(int(each.index) == 2 for each in copied) >= 9
    assert not any(bool(each.copied) for each in others)


def test_an_empty_history_is_copied_from_by_nobody():
    picture, product = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32)
    history = torch.stack((picture, picture), 1)
    found = nearest_history(picture, product, history, torch.tensor([[False, True], [False, False]]))
    assert found.copied.tolist() == [True, False]
    assert found.index.tolist() == [1, -1]
    assert found.correlation.tolist() == pytest.approx([1, -1], abs=1e-4)
    assert nearest_history(picture, product, history[:, :0], torch.zeros(2, 0) > 0).index.tolist() == [-1, -1]
