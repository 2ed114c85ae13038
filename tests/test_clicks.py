"""`adgen import-clicks` and `adgen make-pairs`: a log becomes histories, users and products become pairs."""

import gzip
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.feeds import read_table, table
from support.shops import SmallShop, small_shop

from adgen import records
from adgen.cli import main
from adgen.errors import InputError, SettingsError
from adgen.shop.inputs.feeds import clicks as clicks_module
from adgen.shop.inputs.feeds.clicks import ClickOptions, import_clicks
from adgen.shop.inputs.feeds.pairs import PairOptions, make_pairs
from adgen.shop.inputs.feeds.times import microseconds
from adgen.shop.inputs.tables import open_inputs

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
LOG = [
    {"user": "u1", "product": "p2", "time": "2026-11-01T13:00:00Z", "event": "view"},
    {"user": "u2", "product": "p1", "time": "2026-11-01 12:00:00", "event": "view"},
    {"user": "u1", "product": "p1", "time": "2026-11-01T13:00:00+01:00", "event": "View"},
    {"user": "u1", "product": "p3", "time": "2026-11-01T14:00:00Z", "event": "purchase"},
]
USUALLY = ClickOptions()


def imported(folder: Path, log: str | bytes, name: str = "log.csv", options: ClickOptions = USUALLY):
    """(summary, {user: [(product, time)]})."""
    (folder / name).write_bytes(log if isinstance(log, bytes) else log.encode())
    summary = import_clicks(str(folder / name), folder / "tables", options)
    rows = read_table(folder / "tables", "histories")
    return summary, {row["user_id"]: [(click["product_id"], click["clicked_at"]) for click in row["clicks"]] for row in rows}


@pytest.fixture
def shop(tmp_path: Path) -> SmallShop:
    shop = small_shop(tmp_path / "shop")
    shop.save()
    return shop


# -- clicks ------------------------------------------------------------------------------------------------------------


def test_clicks_are_gathered_by_user_oldest_first(tmp_path):
    summary, histories = imported(tmp_path, table(LOG))
    assert [product for product, _ in histories["u1"]] == ["p1", "p2", "p3"]
    assert histories["u2"] == [("p1", NOON)]
    assert histories["u1"][0] == ("p1", NOON)
    assert (summary.rows, summary.users, summary.clicks) == (4, 2, 4)
    assert summary.events == {"view": 2, "View": 1, "purchase": 1}
    open_inputs(str(tmp_path / "tables"), ("histories",))


def test_a_log_without_times_keeps_its_order(tmp_path):
    _, histories = imported(tmp_path, table([{"user": "u", "product": f"p{n}"} for n in (3, 1, 2)]))
    assert histories == {"u": [("p3", None), ("p1", None), ("p2", None)]}


def test_events_are_filtered_and_not_weighted(tmp_path):
    summary, histories = imported(tmp_path, table(LOG), options=ClickOptions(events=("purchase",)))
    assert list(histories) == ["u1"]
    assert (summary.clicks, summary.other_events) == (1, 3)
    with pytest.raises(InputError, match=r"has no column event .* Say which it is: --map event=COLUMN"):
        imported(tmp_path, table([{"user": "u", "product": "p"}]), options=ClickOptions(events=("view",)))


def test_every_format_is_read_by_a_mapping(tmp_path):
    rows = [{"who": 7, "what": 5, "at": 1_793_534_400}, {"who": 8, "what": 6, "at": 1_793_534_400}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    timed = pa.table({"who": [7.0, 8.0], "what": [5, 6], "at": pa.array([NOON, NOON], pa.timestamp("ns", tz="UTC"))})
    pq.write_table(timed, tmp_path / "timed.parquet")
    options = ClickOptions(("user_id=who", "product_id=what", "clicked_at=at"))
    for name, log in {
        "log.csv": table(rows, ";"),
        "log.csv.gz": gzip.compress(table(rows, "\t").encode("utf-16")),
        "log.jsonl": "\n".join(json.dumps(row) for row in rows),
        "log.parquet": (tmp_path / "log.parquet").read_bytes(),
        "timed.parquet": (tmp_path / "timed.parquet").read_bytes(),
    }.items():
        assert imported(tmp_path, log, name, options)[1] == {"7": [("5", NOON)], "8": [("6", NOON)]}, name


@pytest.mark.parametrize(
    "value",
    [
        *("2026-11-01T12:00:00Z", "2026-11-01 13:00:00+01:00", "2026-11-01 12:00:00 UTC", "Sun, 01 Nov 2026 12:00:00 GMT"),
        *("1793534400", 1_793_534_400_000, 1793534400e6, "1793534400000000000", NOON, NOON.replace(tzinfo=None)),
    ],
)
def test_times_of_all_spellings_are_one(value):
    assert microseconds(value) == NOON.timestamp() * 1e6


@pytest.mark.parametrize("value", ["yesterday", "2026-13-01", "nan", "1e300", "", "01/02/2026", -5, True, "0"])
def test_what_is_no_time_is_said(value):
    with pytest.raises(ValueError, match="expected a time"):
        microseconds(value)


def test_bad_rows_are_named_and_an_empty_time_is_none(tmp_path):
    log = table([*LOG, LOG[0] | {"user": ""}, LOG[0] | {"time": "soon"}, LOG[0] | {"product": " "}, LOG[1] | {"time": ""}])
    summary, histories = imported(tmp_path, log, options=ClickOptions(max_bad_share=0.5))
    assert histories["u2"] == [("p1", None), ("p1", NOON)]
    assert summary.skipped == {"missing_user_id": 1, "bad_time": 1, "missing_product_id": 1}
    problems = read_table(tmp_path / "tables", "click_problems")
    assert [(each["line"], each["column"], each["value"]) for each in problems] == [
        (6, "user_id", ""),
        (7, "clicked_at", "soon"),
        (8, "product_id", ""),
    ]


def test_too_many_bad_rows_write_nothing(tmp_path, capsys):
    imported(tmp_path, table(LOG))
    (tmp_path / "bad.csv").write_text(table([row | {"time": "soon"} for row in LOG]))
    assert main(["import-clicks", str(tmp_path / "bad.csv"), str(tmp_path / "tables")]) == 1
    assert "none of its 4 rows can be used: bad_time 4; the first: " in capsys.readouterr().err
    assert len(read_table(tmp_path / "tables", "histories")) == 2


def test_a_user_keeps_the_newest_clicks(tmp_path):
    log = table([{"user": "crawler", "product": f"p{n}", "time": 1_793_534_400 + n} for n in range(50)])
    summary, histories = imported(tmp_path, log, options=ClickOptions(max_clicks=3))
    assert [product for product, _ in histories["crawler"]] == ["p47", "p48", "p49"]
    assert (summary.clicks, summary.older_clicks) == (3, 47)


def test_clicks_on_unknown_products_are_counted(tmp_path, shop):
    (tmp_path / "log.csv").write_text(table([{"user": "u", "product": each} for each in ("p0", "p1", "nowhere")]))
    assert import_clicks(str(tmp_path / "log.csv"), shop.folder).of_unknown_products == 1


@pytest.mark.parametrize("max_clicks", [1, 20, 1000])
def test_users_are_whole_wherever_batches_end(tmp_path, monkeypatch, max_clicks):
    rows = [{"user": f"u{n % 37 % (n % 5 + 1)}", "product": f"p{n}", "time": 1_793_534_400 + n * 7 % 100} for n in range(2_000)]
    expected: dict[str, list] = {}
    for row in sorted(rows, key=lambda row: row["time"]):
        expected.setdefault(row["user"], []).append(row["product"])
    for at_once in (65_536, 7):
        monkeypatch.setattr(clicks_module, "ROWS_AT_ONCE", at_once)
        monkeypatch.setattr(clicks_module, "_ROWS_PER_BATCH", at_once)
        monkeypatch.setattr(clicks_module, "ROWS_PER_BUCKET", 10 * at_once)
        summary, histories = imported(tmp_path, table(rows), options=ClickOptions(max_clicks=max_clicks))
        found = {user: [product for product, _ in clicks] for user, clicks in histories.items()}
        assert found == {user: products[-max_clicks:] for user, products in expected.items()}
        assert (summary.users, summary.clicks + summary.older_clicks) == (len(expected), 2_000)


def test_events_that_no_row_has_are_said_with_those_that_are_there(tmp_path, capsys):
    (tmp_path / "log.csv").write_text(table(LOG))
    assert main(["import-clicks", str(tmp_path / "log.csv"), str(tmp_path / "tables"), "--events", "buy"]) == 1
    assert "none of its 4 rows has an event of --events buy; found: view 2, View 1, purchase 1" in capsys.readouterr().err


def test_a_click_of_the_future_is_kept_and_named(tmp_path):
    summary, histories = imported(tmp_path, table([LOG[0] | {"time": "2098-01-01"}, LOG[0]]))
    assert [time.year for _, time in histories["u1"]] == [2026, 2098]
    assert (summary.repaired, summary.skipped) == ({"future_time": 1}, {})
    [problem] = read_table(tmp_path / "tables", "click_problems")
    assert (problem["line"], problem["column"], problem["skipped"]) == (2, "clicked_at", False)


def test_a_table_of_products_that_is_none_is_named_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "products.parquet").write_text("not Parquet")
    (tmp_path / "log.csv").write_text(table(LOG))
    assert main(["import-clicks", str(tmp_path / "log.csv"), str(tmp_path / "tables")]) == 1
    assert "products.parquet cannot be read as Parquet" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["products.parquet"]


def test_products_in_parts_are_known_and_a_null_id_hides_nothing(tmp_path):
    rows = [{"product_id": each, "title": "t", "selling_points": [], "image": "i", "scale": 0.5} for each in ("p1", None)]
    (tmp_path / "tables" / "products").mkdir(parents=True)
    schema = records.PRODUCTS.remove(0).insert(0, pa.field("product_id", pa.string()))
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "tables" / "products" / "part.parquet")
    assert imported(tmp_path, table(LOG))[0].of_unknown_products == 2


# -- pairs -------------------------------------------------------------------------------------------------------------


def pairs_of(shop: SmallShop, **options) -> list[tuple]:
    make_pairs(shop.folder, PairOptions(**options))
    return [tuple(row.values()) for row in read_table(shop.folder, "pairs")]


def test_all_users_get_all_products(shop, monkeypatch):
    monkeypatch.setattr("adgen.shop.inputs.feeds.pairs.ROWS_AT_ONCE", 5)
    pairs = pairs_of(shop, locale="en", channel="feed")
    assert Counter(pairs) == Counter((user, product, "en", "feed") for user in shop.histories for product in shop.products)
    assert open_inputs(str(shop.folder))["pairs"].num_rows == len(pairs)


def test_a_campaign_names_its_products(shop, tmp_path, capsys):
    (tmp_path / "spring.txt").write_text("p3\np1\n")
    assert {product for _, product, *_ in pairs_of(shop, products=str(tmp_path / "spring.txt"))} == {"p1", "p3"}
    (tmp_path / "spring.csv").write_text("sku;name\np3;x\nnone;y\n")
    assert (
        main(["make-pairs", str(shop.folder), "--products", str(tmp_path / "spring.csv"), "--max-bad-share", "0.5", "--json"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert (said["products"], said["pairs"], said["skipped"]) == (1, 10, {"unknown_product": 1})
    assert main(["make-pairs", str(shop.folder), "--products", str(tmp_path / "spring.csv")]) == 1
    assert "spring.csv, line 3, column product_id: unknown_product: 'none'" in capsys.readouterr().err


def test_the_top_products_are_those_most_like_the_clicks(shop, monkeypatch):
    for number, title in enumerate(
        ["red steel mug", "green wool socks", "oak lamp", "red steel cup", "grey wool socks", "desk lamp"]
    ):
        shop.products[f"p{number}"]["title"] = title
    shop.histories = {"drinks": ["p0"], "feet": ["p1", "p1"], "reads": ["p2"], "strange": ["nowhere"], "new": []}
    shop.save()
    expected = {"drinks": ["p0", "p3"], "feet": ["p1", "p4"], "reads": ["p2", "p5"], "strange": ["p0", "p1"], "new": ["p0", "p1"]}
    for at_once in (32_768, 2):
        monkeypatch.setattr("adgen.shop.inputs.feeds.pairs.PRODUCTS_AT_ONCE", at_once)
        found: dict[str, list[str]] = {}
        for user, product, *_ in pairs_of(shop, top=2):
            found.setdefault(user, []).append(product)
        assert found == expected
    assert make_pairs(shop.folder, PairOptions(top=2)).without_clicks == 2


def test_a_given_list_is_taken_as_it_is(shop, tmp_path):
    rows = [{"user_id": "u1", "product_id": "p1", "channel": "mail"}, {"user_id": "nobody yet", "product_id": "p2", "channel": ""}]
    (tmp_path / "list.csv").write_text(table([*rows, {"user_id": "", "product_id": "p1"}, {"user_id": "u", "product_id": "gone"}]))
    options = PairOptions(given=str(tmp_path / "list.csv"), channel="feed", max_bad_share=0.5)
    summary = make_pairs(shop.folder, options)
    found = [tuple(row.values()) for row in read_table(shop.folder, "pairs")]
    assert found == [("u1", "p1", None, "mail"), ("nobody yet", "p2", None, "feed")]
    assert summary.skipped == {"missing_user_id": 1, "unknown_product": 1}


def test_a_product_says_the_locale_of_its_pairs(shop):
    shop.products["p1"]["locale"] = "de"
    shop.save()
    assert {(product, locale) for _, product, locale, _ in pairs_of(shop) if product in ("p1", "p2")} == {
        ("p1", "de"),
        ("p2", None),
    }


def test_more_pairs_than_anybody_wants_are_refused(shop):
    with pytest.raises(InputError, match="10 users x 12 products are 120 pairs, more than --max-pairs 100"):
        make_pairs(shop.folder, PairOptions(max_pairs=100))
    with pytest.raises(SettingsError, match="goes with neither"):
        PairOptions(given="x", top=1)
    (shop.folder / "histories.parquet").unlink()
    with pytest.raises(InputError, match="table 'histories' is missing"):
        make_pairs(shop.folder, PairOptions())


def test_a_list_is_never_written_over(shop):
    pairs_of(shop)
    with pytest.raises(InputError, match="this import writes a file of this name there"):
        make_pairs(shop.folder, PairOptions(given=str(shop.folder / "pairs.parquet")))


def test_pairs_of_many_users_lie_in_few_row_groups(shop, monkeypatch):
    """Users come in small batches; a row group of each would be read one by one."""
    monkeypatch.setattr("adgen.shop.inputs.feeds.pairs.USERS_AT_ONCE", 2)
    pairs_of(shop, top=2)
    file = pq.ParquetFile(shop.folder / "pairs.parquet")
    assert (file.num_row_groups, file.metadata.num_rows) == (1, 20)
