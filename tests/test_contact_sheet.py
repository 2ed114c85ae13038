"""adgen/finishing/contact_sheet.py and report.py: the page people open, and how it is read from a store."""

import io
import re
import shutil
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.runs import begin, commit_plan, make_rows, pair_ids

from adgen.creatives.objects import put_object
from adgen.creatives.publish import finish
from adgen.creatives.stores import open_storage
from adgen.errors import ConsumerError
from adgen.finishing.contact_sheet import Card, ReportSummary, render_report, thumbnail
from adgen.finishing.report import build_report, write_report
from adgen.records import FAILED, LINEAGE, MANIFEST, OK, PRODUCTS, REJECTED

SUMMARY = ReportSummary(
    campaign="autumn",
    run_id="20261124015345-583963-81d2d86b",
    state="COMPLETE",
    started_at=datetime(2026, 11, 24, 1, 53, tzinfo=UTC),
    seconds=7500.0,
    rows=100,
    ok=90,
    rejected=7,
    failed=3,
    generated=60,
    carried=40,
    reasons={"title_empty": 7, "truncated": 3},
    roofline_share=0.37,
    published=True,
)
VOID = ("meta", "img", "input", "br")


def picture_bytes(colour, format="WEBP", size=(40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, format)
    return out.getvalue()


def card(**changes) -> Card:
    return Card(**({"pair_id": "ab" * 16, "product_id": "p1", "status": OK, "title": "Grey shirt"} | changes))


class Page(HTMLParser):
    """Tags, their attributes and the text of a page; fails on tags that do not nest."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


# -- the page --------------------------------------------------------------------------------------------------


def test_numbers_reasons_speed_and_roofline_are_shown():
    text = Page(render_report(SUMMARY, [card()])).text
    for words in ("90 ok", "7 rejected", "3 failed", "60 generated", "40 carried over", "2 h 05 min", "37%"):
        assert words in text
    assert "title_empty 7 truncated 3" in text
    assert "showing 1 of 100 creatives" in text
    assert "of the hardware's roofline" in text
    assert "roofline" not in Page(render_report(ReportSummary(**{**fields(SUMMARY), "roofline_share": None}), [])).text


def test_what_the_model_did_not_make_at_once_is_shown_as_shares():
    made = {"drawn_again": 40, "templates": 25, "plain_backgrounds": 1}
    text = Page(render_report(ReportSummary(**{**fields(SUMMARY), **made}), [])).text
    for words in ("40% drawn again", "25% titles by template", "1% plain backgrounds"):
        assert words in text
    assert "template" not in Page(render_report(SUMMARY, [])).text


def fields(summary: ReportSummary) -> dict:
    return {name: getattr(summary, name) for name in ReportSummary.__dataclass_fields__}


def test_page_needs_no_network():
    clicked = (("Red hat", picture_bytes("red")), ("gone", None))
    page = render_report(SUMMARY, [card(picture=picture_bytes("blue"), history=clicked)])
    parsed = Page(page)
    assert all(image["src"].startswith("data:image/webp;base64,") for image in parsed.all("img"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    assert not re.search(r"https?://|url\(|@import", page)
    assert any("default-src 'none'" in meta.get("content", "") for meta in parsed.all("meta"))


def test_page_is_for_light_dark_and_paper():
    page = render_report(SUMMARY, [])
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_everything_that_strangers_wrote_is_escaped():
    evil = "<script>alert(1)</script>\"'&\x00\ud83d$campaign"
    everything = card(
        pair_id=evil,
        product_id=evil,
        status=REJECTED,
        reason=evil,
        title=evil,
        product_title=evil,
        selling_points=(evil,),
        history=((evil, None), (evil, picture_bytes("red"))),
        gates={evil: f"reject: {evil}", "b": "ok"},
        locale=evil,
        channel=evil,
    )
    summary = ReportSummary(**{**fields(SUMMARY), "campaign": evil, "note": evil, "reasons": {evil: 1}, "run_id": evil})
    page = render_report(summary, [everything])
    assert "<script" not in page
    assert "\x00" not in page
    page.encode("utf-8")
    assert "<script>alert(1)</script>" in Page(page).text
    assert "$campaign" in page


def test_failures_are_marked_and_come_last():
    page = render_report(
        SUMMARY,
        [card(status=FAILED, reason="truncated", title=None), card(status=REJECTED, reason="title_length"), card()],
    )
    assert [attributes["class"] for attributes in Page(page).all("article")] == ["card ok", "card rejected", "card failed"]
    assert page.count('class="tag"') == 2
    assert "no title" in page


def test_gates_say_what_is_wrong_and_count_what_is_right():
    gates = {"title_length": "warn: 70 columns", "forbidden_words": 'reject: "最佳"', "picture_blank": "ok", "x": "ok"}
    text = Page(render_report(SUMMARY, [card(gates=gates)])).text
    assert 'forbidden words: "最佳" title length: 70 columns 2 gates passed' in text


def test_history_is_named_private_or_said_to_be_missing():
    assert "keep it where private data may be" in render_report(SUMMARY, [card(history=())])
    assert "This user has no clicks" in render_report(SUMMARY, [card(history=())])
    assert "Click histories are not shown" in render_report(SUMMARY, [card(history=None)])


def test_right_to_left_titles_keep_their_direction():
    titles = [tag for tag in Page(render_report(SUMMARY, [card(title="قميص", locale="ar_EG")])).all("p") if "lang" in tag]
    assert titles == [{"class": "title", "dir": "auto", "lang": "ar-EG"}]


def test_thumbnail():
    small = Image.open(io.BytesIO(thumbnail(picture_bytes("red", "PNG", (400, 200)), 100)))
    assert (small.format, small.size) == ("WEBP", (100, 50))
    assert thumbnail(b"junk", 100) is None
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(clear, "PNG")
    assert np.asarray(Image.open(io.BytesIO(thumbnail(clear.getvalue(), 8)))).min() > 250


# -- read from a store -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A published run of 30 pairs in a folder store, one in five failed or rejected, and its product table."""
    root = tmp_path_factory.mktemp("report")
    storage = open_storage(root / "store")
    pairs = sorted(pair_ids(30))
    run = begin(storage)
    journal = commit_plan(run, pairs, 4)
    for part in journal.unfinished():
        planned = journal.read_plan_part(part)["pair_id"].to_pylist()
        tables = [_rows(storage, pair, pairs.index(pair)) for pair in planned]
        lineage = [
            {"pair_id": pair, "user_id": f"secret-user-{pair}", "product_id": "p", "history_ids": ["hat", "gone"]}
            for pair in planned
        ]
        journal.commit_part(part, pa.concat_tables(tables), pa.Table.from_pylist(lineage, schema=LINEAGE))
    finish(run)
    _write_products(root / "inputs", {f"product-{pair[:2]}" for pair in pairs})
    return root


def _rows(storage, pair: str, number: int) -> pa.Table:
    status = {3: FAILED, 7: REJECTED}.get(number % 10, OK)
    row = make_rows(None, [pair], status=status).to_pylist()[0]
    if status != FAILED:
        made = put_object(storage, picture_bytes((number * 8, 90, 200)), "webp")
        row |= {"title": f"title {number}", "uri": made.uri, "sha256": made.sha256, "bytes": made.bytes, "seconds": 0.5}
        row["gates"] = [("title_length", "ok")]
    return pa.Table.from_pylist([row], schema=MANIFEST)


def _write_products(folder, product_ids) -> None:
    folder.mkdir()
    (folder / "hat.png").write_bytes(picture_bytes("red", "PNG"))
    rows = [{"product_id": "hat", "title": "Red hat", "image": "hat.png"}]
    rows += [{"product_id": name, "title": f"Product {name}", "image": "absent.png"} for name in sorted(product_ids)]
    pq.write_table(pa.Table.from_pylist(rows, schema=PRODUCTS), folder / "products.parquet")


def test_report_shows_creatives_beside_the_users_history(shop, tmp_path):
    count = write_report(shop / "store", "autumn", tmp_path / "report.html", inputs=str(shop / "inputs"))
    parsed = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert count == len(parsed.all("article")) == 30
    assert len([image for image in parsed.all("img") if image["alt"] == "Red hat"]) == 30
    assert len([image for image in parsed.all("img") if image["alt"].startswith("creative for Product")]) == 27
    assert "24 ok 3 rejected 3 failed" in parsed.text


def test_sample_is_the_same_each_time_and_keeps_failures(shop):
    storage = open_storage(shop / "store")
    page, count = build_report(storage, "autumn", num_cards=9)
    assert count == 9
    assert page == build_report(storage, "autumn", num_cards=9)[0]
    classes = [attributes["class"] for attributes in Page(page).all("article")]
    assert classes.count("card ok") == 6


def test_report_names_no_user(shop):
    assert "secret-user" not in build_report(open_storage(shop / "store"), "autumn", str(shop / "inputs"))[0]


def test_report_without_the_private_part_shows_what_is_public(shop, tmp_path):
    shutil.copytree(shop / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "private")
    page, count = build_report(open_storage(tmp_path / "store"), "autumn", str(shop / "inputs"))
    assert count == 30
    assert "Click histories are not shown" in page
    assert "Red hat" not in page


def test_report_outlives_inputs_and_objects(shop, tmp_path):
    shutil.copytree(shop / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "objects")
    page, count = build_report(open_storage(tmp_path / "store"), "autumn", str(tmp_path / "no inputs"))
    assert count == 30
    assert not Page(page).all("img")


def test_nothing_published_is_said(tmp_path):
    with pytest.raises(ConsumerError, match="nothing published"):
        write_report(tmp_path / "store", "autumn", tmp_path / "report.html")
