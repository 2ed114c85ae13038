"""adgen/finishing/encode.py and finish.py: deterministic files, and the whole way from background to creative."""

import hashlib
import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.creatives import BACKGROUND, PRODUCT, file_of
from support.processes import python

from adgen.config import FinishSettings, RenditionSettings
from adgen.errors import PairError
from adgen.finishing.encode import encode
from adgen.finishing.finish import ProductFacts, finish
from adgen.finishing.marking import read_marking
from adgen.records import MANIFEST

BEFORE_METHODS = "ed61f2d676b06af7f287d41846255795fbff8e1b70c6a6a14aa884afd2199d6d"
"""Of FinishSettings, when WebP had no method."""


@pytest.mark.parametrize(
    ("format", "extension", "content_type"),
    [("webp", "webp", "image/webp"), ("jpeg", "jpg", "image/jpeg"), ("png", "png", "image/png")],
)
def test_each_format(format, extension, content_type):
    picture = Image.fromarray(BACKGROUND).resize((96, 64))
    encoded = encode(picture, format, 90, b"<x/>")
    assert (encoded.extension, encoded.content_type) == (extension, content_type)
    assert (encoded.width, encoded.height) == (96, 64)
    read = Image.open(io.BytesIO(encoded.data))
    assert (read.format.lower(), read.size, read.mode) == (format, (96, 64), "RGB")
    difference = np.abs(np.asarray(read).astype(int) - np.asarray(picture)).mean()
    assert difference == 0 if format == "png" else difference < 4


@pytest.mark.parametrize("format", ["webp", "jpeg", "png"])
def test_noise_at_the_best_quality_is_encoded(format):
    """What an untrained model paints: it takes more bytes than it has pixels."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (512, 512, 3), dtype=np.uint8))
    assert len(encode(picture, format, 100, b"<x/>").data) > 512 * 512


def test_a_quicker_webp_is_another_file_and_another_digest_only_where_it_is_asked_for():
    """A store of before, whose settings did not know of methods, is carried."""
    picture = Image.fromarray(BACKGROUND).resize((256, 256))
    usual, quick = (encode(picture, "webp", 88, b"<x/>", *method).data for method in ((), (2,)))
    assert usual == encode(picture, "webp", 88, b"<x/>", FinishSettings().webp_method).data != quick
    assert np.abs(np.asarray(Image.open(io.BytesIO(quick))).astype(int) - np.asarray(picture)).mean() < 4
    finished = finish(BACKGROUND, "a mug", PRODUCT, FinishSettings(webp_method=0)).picture.data
    assert finished != finish(BACKGROUND, "a mug", PRODUCT, FinishSettings()).picture.data
    assert FinishSettings().digest() == BEFORE_METHODS != FinishSettings(webp_method=2).digest()


def test_quality_changes_the_size():
    picture = Image.fromarray(BACKGROUND).resize((256, 256))
    for format in ("webp", "jpeg"):
        assert len(encode(picture, format, 30, b"").data) < len(encode(picture, format, 95, b"").data)


@pytest.mark.parametrize("format", ["webp", "jpeg", "png"])
def test_same_input_gives_the_same_bytes(format):
    settings = FinishSettings(format=format, aigc_producer="example", visible_labels={"*": "AI"})
    first, second = (finish(BACKGROUND, "Red mug", PRODUCT, settings) for _ in range(2))
    assert first == second
    assert first.picture.data == second.picture.data


def test_same_input_gives_the_same_bytes_in_another_process():
    code = """
import hashlib
from adgen.config import FinishSettings
from adgen.finishing.finish import finish
from support.creatives import BACKGROUND, PRODUCT
print(hashlib.sha256(finish(BACKGROUND, "Red mug", PRODUCT, FinishSettings()).picture.data).hexdigest())
"""
    here = hashlib.sha256(finish(BACKGROUND, "Red mug", PRODUCT, FinishSettings()).picture.data).hexdigest()
    assert python(code).stdout.strip() == here


def test_creative_is_finished():
    finished = finish(BACKGROUND, " <prompt>Red mug 300ml</prompt>", PRODUCT, FinishSettings(width=400, height=500))
    assert finished.title == "Red mug 300ml"
    assert finished.verdict.status == "ok"
    picture = Image.open(io.BytesIO(finished.picture.data))
    assert picture.size == (400, 500)
    assert read_marking(picture).digital_source_type == "compositeWithTrainedAlgorithmicMedia"
    assert np.abs(np.asarray(picture)[250, 200].astype(int) - [180, 40, 40]).max() < 12


def test_manifest_fields_fit_the_manifest():
    fields = finish(BACKGROUND, "Red mug 300ml", PRODUCT, FinishSettings()).manifest_fields()
    for name, value in fields.items():
        assert pa.scalar(value, MANIFEST.field(name).type).is_valid or value is None


def test_rejected_creative_has_its_reason_and_its_picture():
    finished = finish(BACKGROUND, "Red mug 900ml", PRODUCT, FinishSettings())
    assert finished.manifest_fields()["status"] == "rejected"
    assert finished.manifest_fields()["reason"] == "numbers_and_units"
    assert finished.picture.data
    assert finish(BACKGROUND, "\u200b", PRODUCT, FinishSettings()).manifest_fields()["title"] is None


def test_renditions_hold_the_product_or_are_left_out_with_a_warning():
    wanted = (RenditionSettings(width=400, height=500), RenditionSettings(width=960, height=200, format="jpeg"))
    finished = finish(BACKGROUND, "Red mug", PRODUCT, FinishSettings(renditions=wanted))
    assert [(r.ratio, r.picture.width, r.picture.height) for r in finished.renditions] == [("4:5", 400, 500)]
    assert finished.verdict.gates["rendition 24:5"].startswith("warn: only")
    assert finished.verdict.status == "ok"


def test_product_without_cutout_loses_its_border():
    photo = Image.new("RGB", (120, 160), (250, 250, 250))
    photo.paste((180, 40, 40), (30, 40, 95, 130))
    product = ProductFacts("Red mug", image=file_of(photo, "JPEG"))
    picture = Image.open(io.BytesIO(finish(BACKGROUND, "Red mug", product, FinishSettings()).picture.data))
    corner = np.asarray(picture)[:20, :20].reshape(-1, 3).mean(axis=0)
    expected = np.asarray(Image.fromarray(BACKGROUND).resize((512, 512)))[:20, :20].reshape(-1, 3).mean(axis=0)
    assert np.abs(corner - expected).max() < 8


@pytest.mark.parametrize(
    ("product", "reason"),
    [
        (ProductFacts("x"), "no_cutout"),
        (ProductFacts("x", cutout=b"junk"), "unreadable"),
        (ProductFacts("x", cutout=PRODUCT.cutout[:200]), "truncated"),
        (ProductFacts("x", cutout=PRODUCT.cutout, scale=2.0), "invalid_scale"),
        (ProductFacts("x", cutout=file_of(Image.new("RGBA", (9, 9), (0, 0, 0, 0)))), "no_cutout"),
    ],
)
def test_product_that_cannot_be_used_is_a_named_reason(product, reason):
    with pytest.raises(PairError) as caught:
        finish(BACKGROUND, "Red mug", product, FinishSettings())
    assert caught.value.reason == reason


def test_background_of_the_wrong_type_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="float64"):
        finish(BACKGROUND / 255.0, "x", PRODUCT, FinishSettings())


def test_finishing_loads_neither_torch_nor_ray_nor_boto3():
    code = "import sys, adgen.finishing.finish; print([m for m in ('torch', 'ray', 'boto3') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
