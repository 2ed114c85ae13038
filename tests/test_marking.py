"""adgen/finishing/marking.py: what a creative's file and picture say of their origin, read back with Pillow."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from adgen.config import FinishSettings
from adgen.errors import SettingsError
from adgen.finishing.channels import label_for
from adgen.finishing.encode import encode
from adgen.finishing.marking import draw_label, read_marking, xmp_packet

PICTURE = Image.fromarray(np.random.default_rng(4).integers(0, 256, (200, 300, 3), dtype=np.uint8))


def reopened(settings: FinishSettings, format: str) -> Image.Image:
    return Image.open(io.BytesIO(encode(PICTURE, format, 90, xmp_packet(PICTURE, settings)).data))


@pytest.mark.parametrize("format", ["webp", "jpeg", "png"])
def test_marking_is_read_back(format):
    marking = read_marking(reopened(FinishSettings(), format))
    assert marking == ("compositeWithTrainedAlgorithmicMedia", None)


@pytest.mark.parametrize("format", ["webp", "jpeg", "png"])
def test_source_type_and_aigc_field_follow_the_settings(format):
    settings = FinishSettings(digital_source_type="trainedAlgorithmicMedia", aigc_producer='示例 <A&B> "Ünit"')
    marking = read_marking(reopened(settings, format))
    assert marking.digital_source_type == "trainedAlgorithmicMedia"
    assert marking.aigc["Label"] == "1"
    assert marking.aigc["ContentProducer"] == '示例 <A&B> "Ünit"'
    assert len(marking.aigc["ProduceID"]) == 32


def test_packet_is_the_same_for_the_same_pixels_and_differs_for_others():
    settings = FinishSettings(aigc_producer="example")
    assert xmp_packet(PICTURE, settings) == xmp_packet(PICTURE.copy(), settings)
    assert xmp_packet(PICTURE, settings) != xmp_packet(Image.new("RGB", (300, 200)), settings)


def test_packet_holds_no_time_and_no_name():
    packet = xmp_packet(PICTURE, FinishSettings()).decode()
    for word in ("Date", "user", "run", "creator", "CreatorTool"):
        assert word.lower() not in packet.lower().replace("rdf:about", "")


@pytest.mark.parametrize(
    "packet",
    [b"", b"<x", b"\xff\xfe", b"<a/>", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'],
    ids=["none", "cut", "not text", "other", "entities"],
)
def test_unreadable_marking_is_none(packet):
    out = io.BytesIO()
    PICTURE.save(out, format="WEBP", xmp=packet)
    assert read_marking(Image.open(io.BytesIO(out.getvalue()))) is None


# -- visible labels --------------------------------------------------------------------------------------------


def test_labels_are_off_by_default_and_by_channel():
    assert label_for("douyin", FinishSettings()) is None
    settings = FinishSettings(visible_labels={"douyin": "AI生成", "*": "AI-generated", "feed": ""})
    assert label_for("douyin", settings) == "AI生成"
    assert label_for("other", settings) == label_for(None, settings) == "AI-generated"
    assert label_for("feed", settings) is None


@pytest.mark.parametrize("size", [(512, 512), (400, 900), (1200, 628)])
def test_label_is_at_least_five_percent_high(size):
    grey = Image.new("RGB", size, (128, 128, 128))
    labelled = np.asarray(draw_label(grey, "AI", None)).astype(int)
    rows = np.nonzero((labelled.min(axis=2) > 200).any(axis=1))[0]
    assert rows.max() - rows.min() + 1 >= 0.05 * min(size) - 1
    assert rows.max() - rows.min() + 1 <= 0.07 * min(size) + 2
    assert np.asarray(grey).max() == 128, "the given picture is not drawn on"
    assert (labelled[: size[1] // 2] == 128).all(), "the label is in the lower corner"


@pytest.mark.parametrize("label", ["AI-generated picture", "AI"])
def test_label_stays_inside(label):
    labelled = np.asarray(draw_label(Image.new("RGB", (512, 512), (128, 128, 128)), label, None)).astype(int)
    edge = np.concatenate([labelled[0], labelled[-1], labelled[:, 0], labelled[:, -1]])
    assert (edge == 128).all()


def test_label_that_the_font_cannot_write_is_refused():
    with pytest.raises(SettingsError, match=r"生成.*label_font"):
        draw_label(PICTURE, "AI生成", None)
    with pytest.raises(SettingsError, match="absent"):
        draw_label(PICTURE, "AI", "absent.ttf")
    with pytest.raises(SettingsError, match="wide"):
        draw_label(PICTURE, "AI " * 60, None)


def test_label_takes_a_font_file(tmp_path):
    font = tmp_path / "font.ttf"
    font.write_bytes(ImageFont.load_default(20).font_bytes)
    assert np.asarray(draw_label(PICTURE, "AI", str(font))).shape == (200, 300, 3)
