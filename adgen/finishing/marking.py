"""Marking a picture as made with AI: for machines in its XMP, for people as a label where a channel asks for one
(adgen/finishing/channels.py).

IPTC's word for these creatives is compositeWithTrainedAlgorithmicMedia: a real product photograph set into a generated
background, so a composite of which one element comes from a trained model. `trainedAlgorithmicMedia` says that all of
it is generated, which would be untrue of the product. The marking names no user, no run and no time: the same creative
has the same bytes whoever it is for.
"""

import json
from functools import lru_cache
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

from adgen.config import FinishSettings
from adgen.errors import SettingsError
from adgen.records import digest

IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
AIGC = "http://www.tc260.org.cn/ns/AIGC/1.0/"
LABEL_HEIGHT = 0.05  # GB 45438-2025: characters at least this share of the picture's shortest side

_PACKET = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{iptc}" xmlns:TC260="{tc260}">
<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>
{aigc}</rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


class Marking(NamedTuple):
    """What a file says of its origin."""

    digital_source_type: str
    """IPTC's word, the last part of its URI."""
    aigc: dict[str, str] | None
    """China's AIGC field, where the file has one."""


# -- for machines ----------------------------------------------------------------------------------------------


def xmp_packet(picture: Image.Image, settings: FinishSettings) -> bytes:
    """The XMP of `picture`: IPTC's DigitalSourceType, and China's AIGC field when a producer is set."""
    aigc = ""
    if settings.aigc_producer is not None:
        aigc = f"<TC260:AIGC>{escape(_aigc_field(picture, settings.aigc_producer))}</TC260:AIGC>\n"
    source = SOURCE_TYPES + settings.digital_source_type
    return _PACKET.format(iptc=IPTC, tc260=AIGC, source=source, aigc=aigc).encode()


def _aigc_field(picture: Image.Image, producer: str) -> str:
    """GB 45438-2025's JSON. Label 1: is generated. The content's number is a hash of its pixels, so it names nobody."""
    field = {
        "Label": "1",
        "ContentProducer": producer,
        "ProduceID": digest(picture.mode, *picture.size, picture.tobytes())[:32],
        "ReservedCode1": "",
        "ContentPropagator": "",
        "PropagateID": "",
        "ReservedCode2": "",
    }
    return json.dumps(field, ensure_ascii=False, separators=(",", ":"))


def read_marking(picture: Image.Image) -> Marking | None:
    """The marking in an opened WebP, JPEG or PNG; None when it has none that can be read."""
    packet = picture.info.get("xmp")
    if not packet or b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:  # an XMP packet needs no entities; bombs do
        return None
    try:
        root = ElementTree.fromstring(packet.decode("utf-8").strip("\ufeff\0 \n"))
        source = root.findtext(f".//{{{IPTC}}}DigitalSourceType")
        aigc = root.findtext(f".//{{{AIGC}}}AIGC")
        if source is None:
            return None
        return Marking(source.rsplit("/", 1)[-1], json.loads(aigc) if aigc else None)
    except (ElementTree.ParseError, ValueError):
        return None


# -- for people ------------------------------------------------------------------------------------------------


def draw_label(picture: Image.Image, label: str, font_path: str | None) -> Image.Image:
    """A copy of `picture` (RGB) with `label` in white on a dark plate in the lower right corner.

    Its characters are at least 5% of the shortest side high. SettingsError when the font cannot be read or
    lacks one of the characters, which would come out as an empty box.
    """
    shortest = min(picture.size)
    font = _font_for(label, font_path, shortest)
    left, top, right, bottom = font.getbbox(label)
    pad = max(2, round((bottom - top) * 0.35))
    plate = Image.new("L", (right - left + 2 * pad, bottom - top + 2 * pad), 150)
    room = picture.width - 2 * pad
    if plate.width > room:
        raise SettingsError(f"visible_labels: {label!r} is {plate.width} pixels wide, the picture has room for {room}")
    corner = (picture.width - plate.width - pad, picture.height - plate.height - pad)
    labelled = picture.copy()
    labelled.paste((0, 0, 0), corner, plate)
    ImageDraw.Draw(labelled).text((corner[0] + pad - left, corner[1] + pad - top), label, "white", font)
    return labelled


@lru_cache(maxsize=64)
def _font_for(label: str, font_path: str | None, shortest: int) -> ImageFont.FreeTypeFont:
    """The smallest size of the font in which the label's characters are high enough."""
    least = shortest * LABEL_HEIGHT
    size = max(8, round(least))
    font = _load_font(font_path, size)
    _check_characters(label, font, font_path)
    while _character_height(label, font) < least:
        size += 1
        font = _load_font(font_path, size)
    return font


def _character_height(label: str, font: ImageFont.FreeTypeFont) -> int:
    """Height of a capital or a Chinese character; tails under the line don't count towards the 5%."""
    return -font.getbbox(label, anchor="ls")[1]


def _load_font(font_path: str | None, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(font_path, size) if font_path else ImageFont.load_default(size)
    except OSError as error:
        raise SettingsError(f"label_font: {font_path} cannot be read as a font: {error}") from None


def _check_characters(label: str, font: ImageFont.FreeTypeFont, font_path: str | None) -> None:
    missing_glyph = bytes(font.getmask("\U0010fffe"))  # no font has this noncharacter
    lacking = [char for char in label if not char.isspace() and bytes(font.getmask(char)) == missing_glyph]
    if lacking:
        name = font_path or "Pillow's own font"
        raise SettingsError(
            f"visible_labels: {name} has no {''.join(lacking)!r} of {label!r}; set label_font to a font file that has"
        )
