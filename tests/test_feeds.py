"""`adgen import-feed`: the formats of shops become products and offers; what cannot be used is named, hostile files are refused."""

import codecs
import gzip
import json
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.feeds import (
    GROUPS,
    HIGHLIGHTS,
    MERCHANT,
    SHOPIFY,
    merchant_atom,
    merchant_rss,
    merchant_tsv,
    meta_csv,
    read_table,
    table,
    write_pictures,
)
from support.shops import SmallShop, small_shop

from adgen.cli import main
from adgen.creatives.stores import open_storage
from adgen.errors import InputError, SettingsError
from adgen.shop.inputs.feeds import sources
from adgen.shop.inputs.feeds.offers import availability_of, gtin_of, price_of
from adgen.shop.inputs.feeds.products import FeedOptions, import_feed
from adgen.shop.inputs.feeds.selling_points import selling_points
from adgen.shop.inputs.html_text import plain_text
from adgen.shop.inputs.tables import open_inputs

USUALLY = FeedOptions()
LENIENT = FeedOptions(max_bad_share=0.9)
USUAL = {"id": "a", "title": "A mug", "image": "images/0.png"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a feed lies, with three pictures."""
    write_pictures(tmp_path / "feed")
    return tmp_path / "feed"


def imported(folder: Path, feed: str | bytes, name: str = "feed.csv", options: FeedOptions = USUALLY):
    """(summary, products, offers, problems) of this feed."""
    (folder / name).write_bytes(feed if isinstance(feed, bytes) else feed.encode())
    dest = folder.parent / "tables"
    summary = import_feed(str(folder / name), dest, options)
    return summary, *(read_table(dest, each) for each in ("products", "offers", "feed_problems"))


# -- formats -----------------------------------------------------------------------------------------------------------


def test_a_merchant_feed_of_two_thousand_with_every_attribute_once(folder):
    feed = merchant_rss(2_000)
    first = ElementTree.fromstring(feed).find("channel/item")
    used = [each.tag.partition("}")[2] for each in first]
    assert used.count("product_highlight") == len(HIGHLIGHTS)  # the one that comes several times
    assert sorted({*used}) == sorted([*MERCHANT, *GROUPS, "product_highlight"])
    assert len(used) == len(MERCHANT) + len(GROUPS) + len(HIGHLIGHTS) >= 105
    summary, products, offers, problems = imported(folder, feed, "feed.xml")
    assert (summary.rows, summary.products, problems) == (2_000, 2_000, [])
    assert [each["product_id"] for each in products] == [f"sku-{n}" for n in range(2_000)]
    assert products[0] == {
        "product_id": "sku-0",
        "title": "Plain red & steel mug 0",
        "selling_points": list(HIGHLIGHTS),
        "image": str(folder / "images" / "0.png"),
        "cutout": None,
        "scale": pytest.approx(0.6),
        "category": "Kitchen > Mugs",
        "brand": "Pax",
        "locale": None,
    }
    assert products[1]["selling_points"] == ["Keeps tea warm for hours", "Holds for years"]
    link = "https://shop.example/p/0?a=1&b=2"
    assert offers[0] == {
        "product_id": "sku-0",
        "price": "12.90 EUR",
        "availability": "in_stock",
        "link": link,
        "gtin": MERCHANT["gtin"],
    }
    pictures = open_inputs(str(folder.parent / "tables"), ("products",))
    assert pictures.resolve(products[2]["image"]) == str(folder / "images" / "1.png")


def test_a_made_title_stands_in_where_there_is_no_other(folder):
    feed = merchant_rss(1).replace("<g:title>", "<g:other>").replace("</g:title>", "</g:other>").replace("short_title", "other")
    assert imported(folder, feed, "feed.xml")[1][0]["title"] == "A made title 0"
    row = {"id": "a", "structured title": 'trained_algorithmic_media:"A made title"', "image link": "images/0.png"}
    assert imported(folder, table([row], "\t"), "feed.tsv")[1][0]["title"] == "A made title"


def test_atom_has_its_link_in_an_attribute(folder):
    _, products, offers, problems = imported(folder, merchant_atom(), "feed.xml")
    assert [(each["product_id"], each["title"]) for each in products] == [("lamp-0", "Lamp 0"), ("lamp-1", "Lamp 1")]
    assert (offers[1]["link"], problems) == ("https://shop.example/1", [])


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode(),
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: text.encode("latin-1"),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: gzip.compress(text.encode()),
        lambda text: text.replace("\n", "\r\n").encode(),
    ],
    ids=["utf-8", "utf-8 with a mark", "latin-1", "utf-16", "utf-16-le", "utf-16-be", "gzip", "windows"],
)
def test_a_merchant_table_is_read_in_any_encoding(folder, encode):
    _, products, offers, problems = imported(
        folder, encode(merchant_tsv(title="Große Tasse für {n} Café", brand="Pâx")), "feed.txt"
    )
    assert [each["title"] for each in products] == [f"Große Tasse für {n} Café" for n in range(3)]
    assert {each["brand"] for each in products} == {"Pâx"}
    assert ([each["price"] for each in offers], problems) == (["12.90 EUR"] * 3, [])


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "windows-1252"])
def test_xml_says_its_encoding_itself(folder, encoding):
    feed = merchant_rss(1, title="Große Tasse").replace("UTF-8", encoding).encode(encoding)
    assert imported(folder, feed, "feed.xml")[1][0]["title"] == "Große Tasse"


def test_metas_table_has_quotes_and_line_ends_in_cells(folder):
    _, products, offers, problems = imported(folder, codecs.BOM_UTF8 + meta_csv().encode())
    assert [each["title"] for each in products] == ['The "best", red mug', "Two lines", "Mug"]
    assert products[1]["selling_points"] == ["Keeps tea warm", "Holds for years"]
    assert ({each["availability"] for each in offers}, problems) == ({"in_stock"}, [])


def test_metas_listings_have_a_picture_with_an_url_inside(folder):
    feed = (
        "<listings><title>Shop</title><listing><home_listing_id>x</home_listing_id><id>m1</id><name>A mug</name>"
        "<image><url>images/0.png</url><tag>Front</tag></image><image><url>images/1.png</url></image><price>9.99 USD</price>"
        "</listing></listings>"
    )
    _, products, offers, _ = imported(folder, feed, "feed.xml")
    assert (products[0]["product_id"], products[0]["title"], products[0]["image"]) == (
        "m1",
        "A mug",
        str(folder / "images" / "0.png"),
    )
    assert offers[0]["price"] == "9.99 USD"


LATER_NAMES = {
    "Handle": "URL handle",
    "Body (HTML)": "Description",
    "Published": "Published on online store",
    "Variant SKU": "SKU",
    "Variant Inventory Tracker": "Inventory tracker",
    "Variant Inventory Qty": "Inventory quantity",
    "Variant Price": "Price",
    "Variant Inventory Policy": "Continue selling when out of stock",
    "Variant Barcode": "Barcode",
    "Image Src": "Product image URL",
    "Image Position": "Image position",
}
"""Shopify's export before and since it gave its columns other names."""


@pytest.mark.parametrize("names", [{}, LATER_NAMES], ids=["before", "since"])
def test_shopifys_rows_of_a_handle_are_one_product(folder, names):
    options = FeedOptions(currency="USD")
    header, _, rest = SHOPIFY.partition("\n")
    feed = ",".join(names.get(name, name) for name in header.split(",")) + "\n" + rest
    summary, products, offers, _ = imported(folder, feed, "products_export.csv", options)
    assert [each["product_id"] for each in products] == ["shirt", "cap"]
    assert products[0]["selling_points"] == ["Long cotton", "Machine wash"]
    assert [each["image"] for each in products] == [str(folder / "images" / name) for name in ("0.png", "2.png")]
    assert [(each["price"], each["availability"]) for each in offers] == [("17.90 USD", "in_stock"), ("5.00 USD", "out_of_stock")]
    assert offers[0]["gtin"] == "4006381333931"
    assert (summary.products, summary.not_for_sale, summary.skipped) == (2, 1, {})


def test_plain_files_are_read_by_a_mapping(folder):
    rows = [{"nr": 7, "what": "A mug", "img": "images/0.png", "cut": "images/1.png", "share": 0.5}]
    options = FeedOptions(("product_id=nr", "title=What", "image=img", "cutout=cut", "scale=share"))
    expected = ("7", "A mug", str(folder / "images" / "0.png"), str(folder / "images" / "1.png"), 0.5)
    pq.write_table(pa.Table.from_pylist(rows), folder / "feed.parquet")
    for name, feed in {
        "feed.csv": table(rows, ";"),
        "feed.jsonl": "\n".join(json.dumps(row) for row in rows),
        "feed.parquet": (folder / "feed.parquet").read_bytes(),
    }.items():
        _, [product], _, problems = imported(folder, feed, name, options)
        assert tuple(product[each] for each in ("product_id", "title", "image", "cutout", "scale")) == expected, name
        assert problems == []


def test_a_folder_of_files_is_one_feed(folder):
    (folder / "parts").mkdir()
    write_pictures(folder / "parts")
    for number in range(3):
        (folder / "parts" / f"{number}.csv").write_text(table([USUAL | {"id": f"p{number}"}]))
    (folder / "parts" / "_SUCCESS").write_text("")
    assert import_feed(str(folder / "parts"), folder / "out").products == 3


@pytest.mark.usefixtures("aws_environment")
def test_a_feed_on_s3_names_pictures_beside_it(folder, s3_uri):
    store = open_storage(s3_uri)
    for name in ("feed.csv", "images/0.png"):
        store.put(name, table([USUAL]).encode() if name == "feed.csv" else (folder / name).read_bytes())
    import_feed(f"{s3_uri}/feed.csv", folder / "out")
    [product] = read_table(folder / "out", "products")
    assert open_inputs(str(folder / "out"), ("products",)).resolve(product["image"]) == f"{s3_uri}/images/0.png"


def test_a_feed_in_the_root_of_the_disk_opens_no_disk(folder, monkeypatch):
    """Its folder holds every file there is."""
    monkeypatch.setattr("adgen.shop.inputs.feeds.sources.os.path.dirname", lambda path: "/")
    _, products, _, problems = imported(
        folder,
        table([USUAL | {"image": "https://cdn.example/a.png"}, USUAL | {"id": "b", "image": "/etc/passwd"}]),
        options=LENIENT,
    )
    assert ([each["product_id"] for each in products], [each["reason"] for each in problems]) == (["a"], ["scheme_not_allowed"])


META_TEMPLATE = '"# Required | An ID, at most 100 | characters; your SKU","# Required | A title","# Optional | Text",# Required\n'


@pytest.mark.parametrize(
    "feed",
    [
        META_TEMPLATE + "id,title,description,image_link\na,A mug,,images/0.png\n",
        "sep=;\nid;title;image\na;A mug;images/0.png\n",
        "\n\n  \nid|title|image\na|A mug|images/0.png\n",
        'id;title;image;"note, with, more, commas"\na;A mug;images/0.png;x\n',
        '"id","a;b;c;d;e","title","image"\na,x,A mug,images/0.png\n',
    ],
    ids=["Meta's template", "Excel's line", "empty lines", "commas in quotes", "semicolons in quotes"],
)
def test_the_names_of_columns_are_found_below_what_stands_above_them(folder, feed):
    _, [product], _, problems = imported(folder, codecs.BOM_UTF8 + feed.encode())
    assert (product["product_id"], product["title"], problems) == ("a", "A mug", [])


def test_what_lies_inside_objects_has_a_dotted_name(folder):
    row = {"id": 7, "title": {"en": "A mug", "de": "Tasse"}, "image": [{"url": "images/0.png"}, {"url": "images/1.png"}]}
    row |= {"price": {"value": "12.50", "currency": "EUR"}, "deep": {}}
    pq.write_table(pa.Table.from_pylist([row | {"deep": None}]), folder / "feed.parquet")
    options = FeedOptions(("title=title.de", "price=price.value"), currency="EUR")
    for name, feed in {"feed.jsonl": json.dumps(row), "feed.parquet": (folder / "feed.parquet").read_bytes()}.items():
        _, [product], [offer], problems = imported(folder, feed, name, options)
        assert (product["product_id"], product["title"], offer["price"]) == ("7", "Tasse", "12.50 EUR"), name
        assert (product["image"], problems) == (str(folder / "images" / "0.png"), [])


def test_objects_that_multiply_their_names_stay_as_they_are(folder):
    deep: dict = {"title": "x"}
    for _ in range(100):
        deep = {"a": deep}
    wide = {"n" * 100_000: {f"k{number}": 1 for number in range(10_000)}}  # a gigabyte of dotted names
    feed = json.dumps({"id": "a", "title": "A mug", "image": "images/0.png", "deep": deep, **wide})
    assert imported(folder, feed, "feed.jsonl")[0].products == 1


def test_control_characters_leave_texts(folder):
    row = USUAL | {"title": "A\x00 red\x1b[31m mug", "brand": "P\x07ax", "selling_points": "keeps\x08 warm"}
    _, [product], _, _ = imported(folder, json.dumps(row), "feed.jsonl")
    assert (product["title"], product["brand"], product["selling_points"]) == ("A red[31m mug", "Pax", ["keeps warm"])


def test_an_import_never_writes_over_what_it_reads(folder):
    write_pictures(folder / "shop")
    rows = [{"id": "a", "title": "A mug", "image": "images/0.png"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "shop" / "products.parquet")
    before = (folder / "shop" / "products.parquet").read_bytes()
    for source in (folder / "shop" / "products.parquet", folder / "shop"):
        with pytest.raises(InputError, match=r"this import writes (a file of this name|its tables) there"):
            import_feed(str(source), folder / "shop")
    assert (folder / "shop" / "products.parquet").read_bytes() == before
    assert import_feed(str(folder / "shop" / "products.parquet"), folder / "out").products == 1


@pytest.mark.parametrize("name", ["products.parquet", "offers.parquet", "feed_problems.parquet", "picture_roots.json"])
def test_a_folder_in_a_tables_place_leaves_all_as_it_was(folder, name):
    (folder / "out" / name).mkdir(parents=True)
    (folder / "feed.csv").write_text(table([USUAL]))
    with pytest.raises(InputError, match=f"{name}: is a folder"):
        import_feed(str(folder / "feed.csv"), folder / "out")
    assert [path.name for path in (folder / "out").iterdir()] == [name]


# -- what is wrong with a row ------------------------------------------------------------------------------------------


def test_each_bad_row_is_named_by_file_line_column_and_value(folder):
    rows = [
        USUAL | {"price": "cheap", "gtin": "4006381333932"},
        USUAL | {"id": "", "title": "Two\nlines"},
        USUAL | {"id": "b", "title": "<b> </b>"},
        USUAL | {"id": "c", "image": "http://plain.example/c.jpg"},
        USUAL | {"id": "d", "image": "../../etc/passwd"},
        USUAL | {"id": "e", "image": "https://user:secret@cdn.example/e.jpg"},
        USUAL | {"id": "f", "image": "images/none.png"},
        USUAL | {"title": "the same id"},
        USUAL | {"id": "g", "title": "", "image": ""},
        USUAL | {"id": "h\x07"},
    ]
    summary, products, _, problems = imported(folder, table([{"price": "", "gtin": ""} | row for row in rows]), options=LENIENT)
    assert [each["product_id"] for each in products] == ["a"]
    assert {each["file"] for each in problems} == {str(folder / "feed.csv")}
    assert sorted((each["line"], each["column"], each["reason"], each["skipped"]) for each in problems) == [
        (2, "gtin", "bad_gtin", False),
        (2, "price", "bad_price", False),
        (3, "product_id", "missing_product_id", True),
        (5, "title", "missing_title", True),
        (6, "image", "scheme_not_allowed", True),
        (7, "image", "outside_roots", True),
        (8, "image", "credentials_in_link", True),
        (9, "image", "missing_file", True),
        (10, "product_id", "duplicate_product", True),
        (11, "title", "missing_title", True),
        (12, "product_id", "bad_product_id", True),
    ]
    assert summary.skipped["missing_title"] == 2
    assert summary.repaired == {"bad_price": 1, "bad_gtin": 1}
    assert any("line 6, column image: scheme_not_allowed: 'http://plain.example/c.jpg'" in example for example in summary.examples)
    assert "secret" not in json.dumps(problems)


def test_too_many_bad_rows_write_nothing(folder, capsys):
    imported(folder, table([USUAL | {"title": "of before"}]))
    (folder / "bad.csv").write_text(table([USUAL, *[USUAL | {"id": f"b{n}", "image": "ftp://x/y"} for n in range(3)]]))
    assert main(["import-feed", str(folder / "bad.csv"), str(folder.parent / "tables")]) == 1
    said = capsys.readouterr().err
    assert "3 of 4 rows cannot be used, more than --max-bad-share 0.1" in said
    assert "bad.csv, line 3, column image: scheme_not_allowed: 'ftp://x/y'" in said
    assert read_table(folder.parent / "tables", "products")[0]["title"] == "of before"
    assert not [path for path in (folder.parent / "tables").iterdir() if path.name.startswith(".import")]
    assert main(["import-feed", str(folder / "bad.csv"), str(folder.parent / "tables"), "--max-bad-share", "0.8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == {"scheme_not_allowed": 3}


def test_a_lone_byte_of_another_encoding_costs_its_row_only(folder):
    feed = table([USUAL | {"id": f"p{n}", "title": "Große Tasse"} for n in range(4)]).encode() + b"bad,Gro\xdfe,images/0.png\r\n"
    _, products, _, [problem] = imported(folder, feed, options=LENIENT)
    assert {each["title"] for each in products} == {"Große Tasse"}
    assert (problem["line"], problem["column"], problem["reason"]) == (6, "title", "bad_text")


def test_a_stray_quote_is_named_by_the_line_where_it_opens(folder):
    feed = table([USUAL]) + 'b,"open,images/0.png\r\n' + "".join(f"c{n},C,images/0.png\r\n" for n in range(9))
    _, products, _, [problem] = imported(folder, feed, options=LENIENT)
    assert (len(products), problem["line"], problem["reason"]) == (1, 3, "wrong_number_of_cells")
    assert "reaches to line 12" in problem["detail"]


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        (b"", "is empty"),
        (b"just words\nand more\n", "its first line has one column"),
        (b"a,b\n1,2\n", "has no column product_id (id, product_id"),
        (b"id,title,image\n", "has no rows"),
        (b"id,title,image\n1,,\n", "none of its 1 rows can be used: missing_title 1"),
        (b"PK\x03\x04zip", "ZIP archive or an Excel workbook"),
        (b"PAR1 but not", "cannot be read as Parquet"),
        (b"[1, 2]", "write one object a line"),
        (b"<rss><channel><item><id>1</id></channel></rss>", "is not XML from here on: mismatched tag: line 1"),
        (b"<rss><channel></channel></rss>", "has no entry, item, listing, product element"),
        (b'<!DOCTYPE r [<!ENTITY a "b">]><rss><item/></rss>', "a DTD or an entity is declared"),
        (b'<!DOCTYPE r SYSTEM "file:///etc/passwd"><rss/>', "a DTD or an entity is declared"),
        (b"<rss>" + b"<a>" * 50 + b"</rss>", "elements lie deeper than 40"),
        (gzip.compress(b"id,title,image\n" * 99, mtime=0)[:30], "its gzip data is broken"),
        (b"\x1f\x8bnot gzip", "its gzip data is broken"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(folder, feed, message, capsys):
    (folder / "feed").write_bytes(feed)
    assert main(["import-feed", str(folder / "feed"), str(folder / "out")]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("adgen: ")
    assert said.count("\n") == 1


def test_entities_that_multiply_are_never_expanded(folder):
    declared = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    (folder / "feed.xml").write_text(f'<!DOCTYPE r [<!ENTITY l0 "lol">{declared}]><rss><item><title>&l9;</title></item></rss>')
    with pytest.raises(InputError, match="line 1: a DTD or an entity is declared"):
        import_feed(str(folder / "feed.xml"), folder / "out")


def test_a_small_file_that_holds_much_is_refused(folder, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 100_000)
    (folder / "feed.csv.gz").write_bytes(gzip.compress(table([USUAL]).encode() + b"\n" * 200_000))
    with pytest.raises(InputError, match="holds, decompressed, more than 100000 bytes"):
        import_feed(str(folder / "feed.csv.gz"), folder / "out")


def test_an_endless_file_is_refused_by_how_much_it_holds_for_its_size(folder, monkeypatch):
    monkeypatch.setattr(sources, "FREE_BYTES", 100_000)
    rows = table([USUAL | {"id": f"p{number}", "title": f"Mug {number * 7919 % 10007}"} for number in range(5_000)])
    assert imported(folder, gzip.compress(rows.encode()), "feed.csv.gz")[0].products == 5_000
    (folder / "feed.csv.gz").write_bytes(gzip.compress(table([USUAL]).encode() + b"\n" * 5_000_000))
    with pytest.raises(InputError, match="more than 200 times its size"):
        import_feed(str(folder / "feed.csv.gz"), folder / "out")


@pytest.mark.parametrize("name", ["feed.csv", "feed.jsonl"])
def test_a_line_without_an_end_is_refused(folder, monkeypatch, name):
    monkeypatch.setattr("adgen.shop.inputs.feeds.rows.MAX_LINE", 100_000)
    start = "{" if name.endswith("jsonl") else table([USUAL])
    (folder / name).write_text(start + "x" * 300_000)
    with pytest.raises(InputError, match="has more than 100000 characters"):
        import_feed(str(folder / name), folder / "out")


@pytest.mark.parametrize("inside", ["<title>{}</title>", "<{} />", "<a b='{}' />"])
def test_a_product_without_an_end_is_refused(folder, monkeypatch, inside):
    monkeypatch.setattr("adgen.shop.inputs.feeds.xml_rows.MAX_ITEM", 100_000)
    (folder / "feed.xml").write_text(f"<rss><item>{inside.format('x' * 300_000)}</item></rss>")
    with pytest.raises(InputError, match=r"more than 100000 (characters|bytes)"):
        import_feed(str(folder / "feed.xml"), folder / "out")


def test_a_folder_that_holds_the_table_in_parts_is_not_written_beside(folder):
    (folder / "out" / "products").mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), folder / "out" / "products" / "part.parquet")
    (folder / "feed.csv").write_text(table([USUAL]))
    with pytest.raises(InputError, match=r"holds products/\*\.parquet"):
        import_feed(str(folder / "feed.csv"), folder / "out")
    assert not (folder / "out" / "offers.parquet").exists()


@pytest.mark.parametrize("mapping", ["title", "titel=name", "title="])
def test_a_mapping_of_no_column_of_ours_is_refused(folder, mapping):
    (folder / "feed.csv").write_text(table([USUAL]))
    with pytest.raises(SettingsError, match="expected OURS=THEIRS"):
        import_feed(str(folder / "feed.csv"), folder / "out", FeedOptions((mapping,)))


# -- what becomes of values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("129.99 USD", "129.99 USD"),
        ("USD 129.99", "129.99 USD"),
        ("1,299.00 USD", "1299.00 USD"),
        ("1.299,00 €", "1299.00 EUR"),
        ("12,90 EUR", "12.90 EUR"),
        ("1,299 USD", "1299 USD"),
        ("1'299.50 CHF", "1299.50 CHF"),
        ("1 299 SEK", "1299 SEK"),
        ("15", "15 GBP"),
        ("0.00", "0.00 GBP"),
    ],
)
def test_prices_of_all_spellings_are_one(text, price):
    assert price_of(text, "GBP") == price


@pytest.mark.parametrize("text", ["cheap", "-5 USD", "5 to 10 USD", "", "USD"])
def test_what_is_no_price_is_said(text):
    with pytest.raises(ValueError, match="expected one amount"):
        price_of(text)


def test_availability_and_gtin_have_one_spelling():
    assert {availability_of(text) for text in ("in stock", "InStock", "in_stock", "https://schema.org/InStock", "TRUE")} == {
        "in_stock"
    }
    assert {availability_of(text) for text in ("Out of stock", "SoldOut", "out-of-stock")} == {"out_of_stock"}
    assert gtin_of("400-6381 333931") == "4006381333931"
    for wrong in ("4006381333932", "4.00638E+12", "123", "４００６３８１３３３９３１"):
        with pytest.raises(ValueError, match=r"expected 8, 12|check digit"):
            gtin_of(wrong)


def test_html_is_taken_out_and_what_only_looks_like_it_stays():
    assert plain_text("<p>Red &amp;amp; <b>blue</b></p><script>alert(1)</script> mug") == "Red & blue mug"
    assert plain_text("AT&T < 5 cm & > 3 cm") == "AT&T < 5 cm & > 3 cm"
    assert plain_text("a&nbsp;b\t\n c") == "a b c"


def test_selling_points_come_from_what_lists_them_first():
    description = "<p>Best mug.</p><ul><li>Keeps warm</li><li>Holds &amp; lasts</li></ul>"
    assert selling_points(["Light|Strong", "Light"], description, "Mug") == ["Light", "Strong"]
    assert selling_points([], description, "Mug") == ["Keeps warm", "Holds & lasts"]
    assert selling_points([], "Mug. It keeps tea warm. Only $5! Free shipping. 保温六小时。不锈钢内胆。", "Mug") == [
        "It keeps tea warm",
        "保温六小时",
        "不锈钢内胆",
    ]
    assert selling_points([], "", "Mug") == []


class FedShop(SmallShop):
    """A shop whose products come from a feed of its own, all at one price."""

    price = "5 EUR"

    def save(self):
        super().save()
        rows = [{"id": name, "price": self.price} | row for name, row in self.products.items()]
        rows = [row | {"cutout": row["cutout"] or "", "selling_points": "|".join(row["selling_points"])} for row in rows]
        (self.folder / "feed.csv").write_text(table(rows))
        import_feed(str(self.folder / "feed.csv"), self.folder)
        return open_inputs(str(self.folder))


def test_a_price_change_remakes_nothing(tmp_path):
    """The plan's fingerprints do not know of offers: the second night carries all."""
    drawn, store = small_shop(tmp_path / "shop"), open_storage(tmp_path / "store")
    shop = FedShop(drawn.folder, drawn.products, drawn.histories, drawn.pairs)
    first = shop.night(store)
    assert {each["price"] for each in read_table(shop.folder, "offers")} == {"5 EUR"}
    shop.price = "6 EUR"
    second = shop.night(store, first)
    assert {each["price"] for each in read_table(shop.folder, "offers")} == {"6 EUR"}
    assert (len(first.generate), second.summary.to_generate, second.summary.carried) == (len(shop.pairs), 0, len(shop.pairs))
    assert {row["fingerprint"] for row in second.carry} == {row["fingerprint"] for row in first.generate}
    shop.products["p4"]["title"] = "another name"
    assert shop.night(store, second).summary.to_generate > 0
