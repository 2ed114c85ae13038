"""PAd1M import: the real set, every known roughness, and flat memory."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adgen.errors import InputError
from adgen.shop.inputs import pad1m, pad1m_file
from adgen.shop.inputs.locations import read_bytes
from adgen.shop.inputs.pad1m import import_pad1m
from adgen.shop.inputs.pad1m_entry import Paths, parse_entry
from adgen.shop.inputs.tables import open_inputs

CLOTHING = Path(__file__).parents[2] / "shared/data/clothing/pad1m.json"
ALL_TABLES = ("products", "histories", "pairs", "references")


def entry(number: int = 1, **changed) -> dict:
    return {
        "user_id": f"user{number}",
        "f_path": f"rgb/target{number}.jpg",
        "f_path_trans": f"trans/target{number}.png",
        "sku_title_cn": f"红色 mug {number}",
        "gt_title_cn": "Red mug<title_split> 红色杯子 <title_split>",
        "word_list": "easy grip, 送礼，耐用,",
        "max_ratio": 0.5,
        "history_images": ["rgb/a.jpg", "rgb/b.jpg"],
        "history_titles": ["title a", "title b"],
        "text_similarity": [],
    } | changed


def import_entries(folder: Path, entries: list, lines: bool = False):
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(each) for each in entries) if lines else json.dumps(entries, ensure_ascii=True)
    (folder / "set.json").write_text(text)
    summary = import_pad1m(folder / "set.json", folder / "shop")
    inputs = open_inputs(folder / "shop", ALL_TABLES)
    return summary, {name: inputs[name].reader().read_all().to_pylist() for name in ALL_TABLES}


def problems(folder: Path) -> list[tuple]:
    rows = pq.read_table(folder / "shop/import_problems.parquet").to_pylist()
    return [(row["entry"], row["reason"], row["skipped"]) for row in rows]


def clicked(row: dict) -> list[str]:
    return [click["product_id"] for click in row["clicks"]]


@pytest.mark.skipif(not CLOTHING.exists(), reason="the real-photo set is not on this machine")
def test_the_real_set_is_imported_and_its_pictures_can_be_read(tmp_path):
    summary = import_pad1m(CLOTHING, tmp_path)
    assert (summary.entries, summary.users, summary.products, summary.pairs) == (300, 100, 150, 300)
    assert not summary.skipped
    inputs = open_inputs(tmp_path, ALL_TABLES)
    products = {row["product_id"]: row for row in inputs["products"].reader().read_all().to_pylist()}
    assert all(read_bytes(inputs.resolve(row["image"])).startswith(b"\xff\xd8") for row in products.values())
    source = json.loads(CLOTHING.read_text())
    histories = {row["user_id"]: clicked(row) for row in inputs["histories"].reader().read_all().to_pylist()}
    for given in source:
        images = [Path(products[product]["image"]).name for product in histories[given["user_id"]]]
        assert images == [Path(path).name for path in given["history_images"]]


def test_every_field_arrives(tmp_path):
    summary, tables = import_entries(tmp_path, [entry()])
    assert summary.skipped == summary.repaired == {}
    (pair,), (history,), (reference,) = tables["pairs"], tables["histories"], tables["references"]
    target, *clicks = tables["products"]
    assert target["title"] == "红色 mug 1"
    assert target["selling_points"] == ["easy grip", "送礼", "耐用"]
    assert (target["image"], target["scale"]) == (str(tmp_path / "rgb/target1.jpg"), 0.5)
    assert target["cutout"] == str(tmp_path / "trans/target1.png")
    assert pair["product_id"] == reference["product_id"] == target["product_id"]
    assert pair["user_id"] == history["user_id"] == reference["user_id"] == "user1"
    assert (reference["image"], reference["titles"]) == (target["image"], ["Red mug", "红色杯子"])
    assert clicked(history) == [click["product_id"] for click in clicks]
    assert [(click["title"], click["cutout"], click["selling_points"]) for click in clicks] == [
        ("title a", None, []),
        ("title b", None, []),
    ]


def test_json_lines_and_an_array_give_the_same_tables(tmp_path):
    entries = [entry(number) for number in range(5)]
    _, array = import_entries(tmp_path / "set", entries)
    _, lines = import_entries(tmp_path / "set", entries, lines=True)
    assert array == lines
    (tmp_path / "set/set.json").write_text("\ufeff \n" + json.dumps(entries))
    assert import_pad1m(tmp_path / "set/set.json", tmp_path / "set/shop").pairs == 5


def test_a_clicked_target_is_one_product_with_the_targets_row(tmp_path):
    first = entry(1, history_images=["rgb/target2.jpg", "./rgb/x/../target1.jpg"], history_titles=["other", "itself"])
    _, tables = import_entries(tmp_path, [first, entry(2)])
    products = {row["product_id"]: row for row in tables["products"]}
    titles = [products[product]["title"] for product in clicked(tables["histories"][0])]
    assert titles == ["红色 mug 2", "红色 mug 1"]
    assert all(products[pair["product_id"]]["cutout"] for pair in tables["pairs"])


def test_html_entities_of_titles_are_decoded_and_nothing_else(tmp_path):
    texts = {
        "Cats &amp; Dogs": "Cats & Dogs",
        "15.6&quot; &lt;new&gt;": '15.6" <new>',
        "caf&#233; &#x1F389;": "café 🎉",
        "twice &amp;amp; more": "twice & more",
        "AT&T R&D salt&pepper &copy &nosuchthing;": "AT&T R&D salt&pepper &copy &nosuchthing;",
        "红色&middot;T恤": "红色·T恤",
    }
    for at, (text, decoded) in enumerate(texts.items()):
        entry = parse_entry(
            {
                "f_path": "a&amp;b.jpg",
                "f_path_trans": "a.png",
                "sku_title_cn": text,
                "gt_title_cn": f"{text}<title_split>x",
                "word_list": text,
                "history_images": ["b.jpg"],
                "history_titles": [text],
                "max_ratio": 0.5,
            },
            Paths(str(tmp_path), str(tmp_path)),
            lambda *_: None,
        )
        assert (entry.target.title, entry.titles[0], entry.clicks[0].title) == (decoded, decoded, decoded), at
        assert entry.target.selling_points == (decoded,)
        assert entry.target.image.endswith("a&amp;b.jpg")


def test_entries_with_one_history_and_no_user_id_are_one_user(tmp_path):
    nobody = [entry(number, user_id=None) for number in (1, 2)]
    other = entry(3, user_id="", history_images=["rgb/b.jpg"], history_titles=["title b"])
    summary, tables = import_entries(tmp_path / "a", [*nobody, other])
    assert summary.users == 2
    users = [row["user_id"] for row in tables["pairs"]]
    assert users[0] == users[1] != users[2]
    _, moved = import_entries(tmp_path / "b", [*nobody, other])  # elsewhere on disk: the same ids
    assert moved["pairs"] == tables["pairs"]


def test_roughness_is_repaired_and_counted(tmp_path):
    rough = [
        entry(1, history_images=["rgb/a.jpg", "rgb/b.jpg", "rgb/c.jpg"]),
        entry(2, history_images=[], history_titles=[]),
        entry(3, history_images=["rgb/a.jpg", None, ""], history_titles=["a", "b", "c"]),
        entry(4, max_ratio=None, f_path_trans=""),
        entry(5, max_ratio=7),
        entry(6, user_id=6, history_titles=["title a", None]),
    ]
    summary, tables = import_entries(tmp_path, rough)
    assert summary.pairs == 6
    assert summary.skipped == {}
    assert summary.repaired == {
        "bad_click": 2,
        "bad_max_ratio": 2,
        "empty_history": 1,
        "no_cutout": 1,
        "unequal_history": 1,
    }
    assert (1, "unequal_history", False) in problems(tmp_path)
    assert [len(row["clicks"]) for row in tables["histories"]] == [2, 0, 1, 2, 2, 2]
    rows = {row["title"]: row for row in tables["products"]}
    assert (rows["红色 mug 4"]["scale"], rows["红色 mug 4"]["cutout"]) == (1.0, None)
    assert rows["红色 mug 5"]["scale"] == 1.0
    assert tables["histories"][5]["user_id"] == "6"


@pytest.mark.parametrize("lines", [True, False])
def test_a_title_cut_inside_an_emoji_still_arrives(tmp_path, lines):
    summary, tables = import_entries(tmp_path, [entry(1, sku_title_cn="emoji cut \ud83d")], lines)
    assert tables["products"][0]["title"] == "emoji cut ?"
    assert summary.repaired == {"bad_unicode": 1}


def test_buckets_change_the_order_only(tmp_path, monkeypatch):
    entries = [entry(number % 7, word_list=f"point {number}") for number in range(30)]
    _, whole = import_entries(tmp_path, entries)
    monkeypatch.setattr(pad1m, "ROWS_PER_BUCKET", 5)
    _, parts = import_entries(tmp_path, entries)
    for name in ALL_TABLES:
        assert parts[name] != whole[name]
        assert sorted(map(repr, parts[name])) == sorted(map(repr, whole[name]))


def test_bad_entries_are_left_out_with_reason_and_number(tmp_path):
    bad = ["text", entry(2, f_path=None), entry(3, sku_title_cn="  "), entry(4, history_images="rgb/a.jpg"), entry(5)]
    bad += [entry(6, word_list=["a"]), entry(7, user_id=True)]
    summary, tables = import_entries(tmp_path, bad)
    assert [row["user_id"] for row in tables["pairs"]] == ["user5"]
    assert summary.skipped == {
        "not_an_object": 1,
        "missing_f_path": 1,
        "missing_sku_title_cn": 1,
        "wrong_type": 3,
    }
    numbers = [number for number, _, skipped in problems(tmp_path) if skipped]
    assert numbers == [1, 2, 3, 4, 6, 7]
    assert any(line.startswith("entry 4: wrong_type: history_images: expected a list") for line in summary.examples)


def test_repeated_pairs_products_and_users_are_merged_and_counted(tmp_path):
    longer = {"history_images": ["rgb/a.jpg", "rgb/b.jpg", "rgb/c.jpg"], "history_titles": ["a", "b", "c"]}
    repeated = [entry(1), entry(1, word_list="other"), entry(2, user_id="user1", **longer)]
    summary, tables = import_entries(tmp_path, repeated)
    assert summary.repaired == {
        "duplicate_pair": 1,
        "product_described_twice": 1,
        "user_with_several_histories": 1,
    }
    assert (summary.pairs, summary.references, summary.users) == (2, 2, 1)
    assert len(tables["histories"][0]["clicks"]) == 3
    assert tables["products"][0]["selling_points"] == ["easy grip", "送礼", "耐用"]


def test_pictures_may_lie_in_dest_beside_the_file_or_elsewhere(tmp_path):
    data, photos = tmp_path / "data", tmp_path / "photos"
    (data / "shop").mkdir(parents=True)
    elsewhere = [f"{photos}/x/a.jpg", f"{photos}/y/b.jpg"]
    one = entry(1, f_path="shop/pictures/t.jpg", history_images=elsewhere)
    summary, tables = import_entries(data, [one])
    assert tables["pairs"][0]["product_id"] == tables["products"][0]["product_id"]
    assert [row["image"] for row in tables["products"]] == ["pictures/t.jpg", *elsewhere]
    assert summary.picture_roots == [str(data), str(photos)]
    inputs = open_inputs(data / "shop")
    assert [inputs.resolve(row["image"]) for row in tables["products"]][1:] == elsewhere


def test_one_path_far_away_does_not_open_the_disk(tmp_path):
    far = entry(1, history_images=["/etc/passwd", f"{tmp_path}/p/b.jpg"])
    assert import_entries(tmp_path / "a", [far])[0].picture_roots == [str(tmp_path / "a")]


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ('[{"f_path": "a"}, {"f_path" "b"}]', r"broken JSON after entry 1, before byte \d+"),
        ('[{"f_path": "a"}, {"f_pa', r"broken JSON after entry 1"),
        ('[{"f_path": "a"}] tail', r"broken JSON after entry 1"),
        ('[{"f_path": "a"} {"f_path": "b"}]', r"broken JSON after entry 1, before byte 18: expected ',' or '\]'"),
        ('[{"f_path": "a"},]', r"broken JSON after entry 1"),
        ("[" * 80_000, r"broken JSON after entry 0: it is nested too deeply"),
        ('[{"f_path": "a"}, ' + "[" * 80_000, r"broken JSON after entry 1: it is nested too deeply"),
        ('{"a": ' * 80_000, r"broken JSON at line 1: it is nested too deeply"),
        ('{"f_path": "a"}\n{"f_path": }\n', r"broken JSON at line 2, column 12"),
        ('{"f_path": "a"}\n\n{"f_path": "b"', r"broken JSON at line 3"),
        ("<html>", r"starts with b'<'; expected a JSON array"),
        ("", "none of its 0 entries can be used: the file is empty"),
        ("[]", "none of its 0 entries can be used"),
        ('[{"f_path": ""}]', r"none of its 1 entries can be used: missing_f_path 1"),
    ],
)
def test_a_broken_file_stops_with_file_and_position_and_leaves_nothing(tmp_path, text, position):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(InputError, match=position) as caught:
        import_pad1m(tmp_path / "set.json", tmp_path / "shop")
    assert "set.json" in str(caught.value)
    assert list((tmp_path / "shop").iterdir()) == []


def write_set(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "set.json").write_text(text)
    return folder / "set.json"


@pytest.mark.parametrize("lines", [True, False])
def test_numbers_that_json_readers_differ_about_lose_no_entry(tmp_path, lines):
    """Ids beyond 64 bits, NaN, and an integer of more digits than Python reads."""
    several = [entry(1), entry(2, user_id=2**63 + 5), entry(3, max_ratio=float("nan")), entry(4, width=0), entry(5, user_id=0)]
    texts = [json.dumps(each) for each in several]
    texts[3] = texts[3].replace('"width": 0', '"width": ' + "9" * 5000)
    texts[4] = texts[4].replace('"user_id": 0', '"user_id": ' + "9" * 5000)
    text = "\n".join(texts) if lines else "[" + ",\n".join(texts) + "]"
    summary = import_pad1m(write_set(tmp_path, text), tmp_path / "shop")
    users = open_inputs(tmp_path / "shop", ALL_TABLES)["pairs"].reader().read_all()["user_id"].to_pylist()
    assert users == ["user1", str(2**63 + 5), "user3", "user4"]
    assert summary.repaired == {"bad_max_ratio": 1, "not_a_number": 2}  # the width and the id
    assert summary.skipped == {"wrong_type": 1}
    assert "entry 3: bad_max_ratio: max_ratio: expected a number in 0..1, found NaN; taken as 1" in summary.examples


def test_windows_paths_are_read_and_told(tmp_path):
    windows = entry(1, f_path="rgb\\target1.jpg", f_path_trans="trans\\target1.png", history_images=["rgb\\a.jpg", "rgb/b.jpg"])
    summary, tables = import_entries(tmp_path / "windows", [windows])
    _, usual = import_entries(tmp_path / "usual", [entry(1)])
    assert summary.repaired == {"windows_path": 3}
    assert [row["product_id"] for row in tables["products"]] == [row["product_id"] for row in usual["products"]]


def test_blanks_before_the_array_and_entries_of_any_size_do_not_matter(tmp_path, monkeypatch):
    """Read in chunks of which many end inside an entry, a character or a number."""
    entries = [entry(number, sku_title_cn=f"红色 🔥 {number}" * (number % 5 + 1), width=123456) for number in range(40)]
    _, whole = import_entries(tmp_path / "whole", entries)
    for size in (1, 7, 64):
        monkeypatch.setattr(pad1m_file, "_CHUNK", size)
        text = " " * 70_000 + json.dumps(entries, ensure_ascii=False, indent=1) + "\n" * 9
        read = list(pad1m_file.read_entries(write_set(tmp_path / str(size), text)))
        assert read == entries
        assert list(pad1m_file.read_entries(write_set(tmp_path / str(size), "[1, 22 ,333]"))) == [1, 22, 333]
    assert len(whole["pairs"]) == 40


def test_an_entry_without_end_is_refused_before_memory_is(tmp_path, monkeypatch):
    monkeypatch.setattr(pad1m_file, "MAX_ENTRY_BYTES", 10_000)
    monkeypatch.setattr(pad1m_file, "_CHUNK", 1000)
    for text in ('[{"f_path": "' + "a" * 50_000, '{"f_path": "' + "a" * 50_000):
        with pytest.raises(InputError, match=r"broken JSON after entry 0|line 1 has more than 10000 bytes"):
            list(pad1m_file.read_entries(write_set(tmp_path, text)))


def test_a_missing_file_and_remote_places_are_input_errors(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        import_pad1m(tmp_path / "none.json", tmp_path / "shop")
    with pytest.raises(InputError, match="local folder"):
        import_pad1m(tmp_path / "none.json", "s3://bucket/shop")


MEASURE = """
import resource, sys
from adgen.shop.inputs import pad1m
pad1m.ROWS_PER_BUCKET, pad1m.ROWS_PER_BATCH, pad1m.RECENT_CLICKS = 20_000, 500, 5_000
pad1m.import_pad1m(sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for count in (2_000, 12_000):
        file = tmp_path / f"{count}.json"
        with open(file, "w") as out:
            for number in range(count):
                clicks = [f"rgb/{number * 16 + click}.jpg" for click in range(16)]
                titles = [f"a title of usual length for click {number} {click}" for click in range(16)]
                one = entry(number, user_id=None, history_images=clicks, history_titles=titles)
                out.write(json.dumps(one) + "\n")
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, file, tmp_path / str(count)], check=True, capture_output=True, text=True
        )
        peaks.append(int(run.stdout))
    assert peaks[1] < peaks[0] + 45, peaks  # the entries alone, held as rows, would take 75 MB more
