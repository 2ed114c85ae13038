"""Feeds and logs as shops export them, made here: a Merchant feed with every attribute, Meta's, Shopify's."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pyarrow.parquet as pq
from PIL import Image

MERCHANT: Mapping[str, str] = {
    "id": "sku-{n}",
    "title": "Plain red &amp; steel mug {n}",
    "description": "Keeps tea warm for hours. Only 12.90 EUR! Holds for years. More at https://shop.example/mug",
    "link": "https://shop.example/p/{n}?a=1&b=2",
    "mobile_link": "https://m.shop.example/p/{n}",
    "canonical_link": "https://shop.example/p/{n}",
    "image_link": "images/{n}.png",
    "additional_image_link": "https://cdn.shop.example/{n}-2.jpg",
    "lifestyle_image_link": "https://cdn.shop.example/{n}-life.jpg",
    "virtual_model_link": "https://cdn.shop.example/{n}.glb",
    "availability": "in stock",
    "availability_date": "2026-12-01T10:00+0100",
    "expiration_date": "2027-01-01T10:00+0100",
    "price": "12.90 EUR",
    "sale_price": "9.90 EUR",
    "sale_price_effective_date": "2026-11-24T11:07+0100/2026-12-24T23:07+0100",
    "cost_of_goods_sold": "4.00 EUR",
    "maximum_retail_price": "15.00 EUR",
    "auto_pricing_min_price": "8.00 EUR",
    "unit_pricing_measure": "1 ct",
    "unit_pricing_base_measure": "1 ct",
    "google_product_category": "Home &amp; Garden &gt; Mugs",
    "product_type": "Kitchen &gt; Mugs",
    "brand": "Pax",
    "gtin": "4006381333931",
    "mpn": "GO12345OOGLE",
    "identifier_exists": "yes",
    "condition": "new",
    "adult": "no",
    "multipack": "6",
    "is_bundle": "no",
    "energy_efficiency_class": "A",
    "min_energy_efficiency_class": "A",
    "max_energy_efficiency_class": "G",
    "age_group": "adult",
    "color": "Red",
    "gender": "unisex",
    "material": "steel",
    "pattern": "plain",
    "size": "M",
    "size_type": "regular",
    "size_system": "EU",
    "item_group_id": "mugs",
    "product_length": "10 cm",
    "product_width": "10 cm",
    "product_height": "12 cm",
    "product_weight": "300 g",
    "ads_redirect": "https://track.shop.example/{n}",
    "custom_label_0": "winter",
    "custom_label_1": "a",
    "custom_label_2": "b",
    "custom_label_3": "c",
    "custom_label_4": "d",
    "promotion_id": "P1",
    "excluded_destination": "Shopping_ads",
    "included_destination": "Free_listings",
    "shopping_ads_excluded_country": "DE",
    "pause": "ads",
    "external_seller_id": "s1",
    "shipping_label": "light",
    "shipping_weight": "3 kg",
    "shipping_length": "20 cm",
    "shipping_width": "20 cm",
    "shipping_height": "20 cm",
    "ships_from_country": "FR",
    "max_handling_time": "3",
    "min_handling_time": "1",
    "transit_time_label": "near",
    "handling_cutoff_timezone": "Europe/Berlin",
    "tax_category": "home",
    "short_title": "Red mug",
    "ads_grouping": "mugs",
    "ads_labels": "winter",
    "display_ads_id": "d{n}",
    "display_ads_similar_id": "d{n}-2",
    "display_ads_title": "Mug",
    "display_ads_link": "https://shop.example/d/{n}",
    "display_ads_value": "3.5",
    "return_policy_label": "days30",
    "ugc_image_link": "https://cdn.shop.example/{n}-ugc.jpg",
    "video_link": "https://cdn.shop.example/{n}.mp4",
    "disclosure_date": "2026-12-01T10:00+0100",
    "link_template": "https://shop.example/store/{n}",
    "mobile_link_template": "https://m.shop.example/store/{n}",
    "pickup_method": "buy",
    "pickup_sla": "same day",
    "popularity_rank": "1",
    "sell_on_google_quantity": "3",
}
"""Attributes of one value, with {n} for the product's number; those of several parts are in `GROUPS`. Names as Google's product
data specification and the attributes of its Merchant API v1 list them (read November 2026), older ones among them."""
HIGHLIGHTS = ("Double walled", "Fits every cup holder")
GROUPS = {
    "shipping": {"country": "DE", "service": "Standard", "price": "4.90 EUR"},
    "free_shipping_threshold": {"country": "DE", "price_threshold": "50 EUR"},
    "tax": {"country": "US", "rate": "5.00", "tax_ship": "y"},
    "installment": {"months": "6", "amount": "3 EUR", "downpayment": "0 EUR", "credit_type": "finance"},
    "subscription_cost": {"period": "month", "period_length": "12", "amount": "3 EUR"},
    "loyalty_program": {"program_label": "club", "tier_label": "gold", "price": "8 EUR", "loyalty_points": "10"},
    "loyalty_points": {"name": "points", "points_value": "10", "ratio": "1.0"},
    "product_detail": {"section_name": "General", "attribute_name": "Volume", "attribute_value": "300 ml"},
    "certification": {"certification_authority": "EC", "certification_name": "EPREL", "certification_code": "123"},
    "carrier_shipping": {"carrier_price": "4 EUR", "country": "DE"},
    "handling_cutoff_time": {"country": "DE", "cutoff_time": "1500", "cutoff_timezone": "Europe/Berlin"},
    "minimum_order_value": {"country": "DE", "service": "Express", "price": "10 EUR"},
    "shipping_handling_business_days": {"country": "DE", "business_days": "Mon-Fri"},
    "shipping_transit_business_days": {"country": "DE", "business_days": "Mon-Sat"},
    "pickup_cost": {"country": "DE", "price": "0 EUR"},
    "questions_and_answers": {"question": "Is it steel?", "answer": "It is."},
    "cloud_export_additional_properties": {"property_name": "rim", "text_value": "thin"},
    "structured_title": {"digital_source_type": "trained_algorithmic_media", "content": "A made title {n}"},
    "structured_description": {"digital_source_type": "trained_algorithmic_media", "content": "A made description."},
}


def merchant_rss(count: int = 2, **changes: str) -> str:
    """An RSS feed; the first product has every attribute of the specification, the others the usual ones."""
    items = "".join(_item(number, MERCHANT | changes if number == 0 else _usual(changes), number == 0) for number in range(count))
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0">\n<channel>\n'
        f"<title>A shop</title>\n<link>https://shop.example</link>\n<description>Mugs</description>\n{items}</channel>\n</rss>\n"
    )


def merchant_atom(count: int = 2) -> str:
    """The same as Atom, where `link` is an attribute and title has no g:."""
    entries = "".join(
        f'<entry><title>Lamp &lt;b&gt;{n}&lt;/b&gt;</title><link href="https://shop.example/{n}"/><g:id>lamp-{n}</g:id>'
        f"<g:image_link>images/{n}.png</g:image_link><g:price>5 EUR</g:price></entry>\n"
        for n in range(count)
    )
    return (
        f'<feed xmlns="http://www.w3.org/2005/Atom" xmlns:g="http://base.google.com/ns/1.0">\n<title>Shop</title>\n{entries}</feed>'
    )


def merchant_tsv(count: int = 3, **changes: str) -> str:
    """Tab separated, with names as the help pages write them."""
    usual = _usual(changes)
    lines = ["\t".join(name.replace("_", " ") for name in usual)]
    lines += ["\t".join(value.replace("&amp;", "&").format(n=n) for value in usual.values()) for n in range(count)]
    return "\n".join(lines) + "\n"


def _usual(changes: Mapping[str, str]) -> dict[str, str]:
    names = ("id", "title", "description", "link", "image_link", "availability", "price", "brand", "gtin", "product_type")
    return {name: MERCHANT[name] for name in names} | {"image_link": "images/1.png"} | changes


def _item(number: int, attributes: Mapping[str, str], whole: bool) -> str:
    lines = [f"<g:{name}>{escape(value.format(n=number))}</g:{name}>" for name, value in attributes.items()]
    if whole:
        lines += [f"<g:product_highlight>{each}</g:product_highlight>" for each in HIGHLIGHTS]
        for group, parts in GROUPS.items():
            inside = "".join(f"<g:{name}>{value.format(n=number)}</g:{name}>" for name, value in parts.items())
            lines.append(f"<g:{group}>{inside}</g:{group}>")
    return "<item>\n" + "\n".join(lines) + "\n</item>\n"


def table(rows: Sequence[Mapping[str, Any]], delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> str:
    """Rows as CSV, the columns of the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def meta_csv() -> str:
    """With quotes, commas and line ends in cells, Meta's words for things, and its comment-like second header left out."""
    usual = {
        "description": "Good.",
        "availability": "in stock",
        "condition": "new",
        "price": "9.99 USD",
        "link": "https://s.example/1",
    }
    return table(
        [
            {
                "id": "m1",
                "title": 'The "best", red mug',
                **usual,
                "image[0].url": "images/0.png",
                "image[0].tag[0]": "Front",
                "brand": "Pax",
            },
            {"id": "m2", "title": "Two\nlines", **usual, "image[0].url": "images/1.png", "image[0].tag[0]": "", "brand": "Pax"}
            | {"description": "Keeps tea warm.\nHolds for years."},
            {"id": "m3", "title": "Mug", **usual, "image[0].url": "images/2.png", "image[0].tag[0]": "", "brand": "Pax"}
            | {"availability": "available for order"},
        ]
    )


SHOPIFY = """\
Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,Variant SKU,\
Variant Inventory Tracker,Variant Inventory Qty,Variant Inventory Policy,\
Variant Price,Variant Barcode,Image Src,Image Position,Image Alt Text,Status
shirt,Cotton shirt,"<p>Soft.</p><ul><li>Long <b>cotton</b></li><li>Machine wash</li></ul>",Pax,Apparel,Shirts,"a, b",true,Size,S,\
sh-s,shopify,0,deny,19.90,'4006381333931,images/1.png,2,,active
shirt,,,,,,,,,M,sh-m,shopify,4,deny,17.90,,images/0.png,1,,
shirt,,,,,,,,,,,,,,,,images/2.png,3,,
cap,Cap,,Pax,,Hats,,true,Title,Default Title,cap-1,shopify,0,deny,5.00,,images/2.png,1,,active
old,Old cap,,Pax,,Hats,,true,Title,Default Title,cap-2,,,deny,5.00,,images/2.png,1,,draft
"""


def write_pictures(folder: Path, count: int = 3) -> None:
    """images/0.png, ...: a coloured square on white."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture = Image.new("RGB", (64, 64), "white")
        picture.paste((200, 40 * number % 256, 60), (16, 16, 48, 48))
        picture.save(folder / "images" / f"{number}.png")


def read_table(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one of an import's tables."""
    return pq.read_table(folder / f"{name}.parquet").to_pylist()
