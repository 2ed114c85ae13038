"""The synthetic shop: reproducible, extensible, held-out splits, and users whose taste can be measured."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adgen import images
from adgen.errors import InputError, SettingsError
from adgen.shop.inputs.tables import open_inputs
from adgen.shop.synthetic import people, synth
from adgen.shop.synthetic import shop as synth_shop
from adgen.shop.synthetic.drawing.backgrounds import STYLES, draw_background, set_on_background
from adgen.shop.synthetic.drawing.products import KINDS, draw_cutout
from adgen.shop.synthetic.drawing.skins import COLOURS, PATTERNS
from adgen.shop.synthetic.draws import draw, jump, shuffled_blocks
from adgen.shop.synthetic.grammar import LOCALES, TONES, product_words
from adgen.shop.synthetic.synth import synthesize

ALL_TABLES = ("products", "histories", "pairs", "references")


def rows(folder: Path, table: str) -> list[dict]:
    return pq.read_table(folder / f"{table}.parquet").to_pylist()


def truth(folder: Path, entity: str) -> dict[str, dict]:
    return {row["id"]: row for row in rows(folder, "styles") if row["entity"] == entity}


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    synthesize(folder, num_users=40, num_products=60, num_references=50)
    return folder


@pytest.mark.slow
def test_same_seed_same_bytes_in_any_process(tmp_path):
    code = (
        "import sys\nfrom adgen.shop.synthetic import synth\n"
        "if __name__ == '__main__':\n"
        "    synth.PICTURES_A_PROCESS = 1\n"
        "    synth.synthesize(sys.argv[1], 8, 20, num_references=4, seed=5, picture_side=96, workers=int(sys.argv[2]))"
    )
    for hash_seed, workers in (("1", 1), ("2", 2)):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code, str(tmp_path / hash_seed), str(workers)]
        subprocess.run(command, check=True, env=environment)
    first = hashes(tmp_path / "1")
    assert len(first) == 2 * 20 + 4 + 6
    assert first == hashes(tmp_path / "2")
    synthesize(tmp_path / "other", 8, 20, num_references=4, seed=6, picture_side=96)
    assert not set(first.values()) & set(hashes(tmp_path / "other").values())


@pytest.mark.slow
def test_a_bigger_shop_extends_a_smaller_one(tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    synthesize(small, num_users=50, num_products=30, num_references=6, picture_side=64)
    synthesize(large, num_users=90, num_products=30, num_pairs=720, num_references=200, picture_side=64)
    for table in ("products", "histories"):
        assert rows(large, table)[: len(rows(small, table))] == rows(small, table)
    for table, key in (("pairs", ("user_id", "product_id")), ("references", ("image", "user_id", "product_id"))):
        kept = {tuple(row[name] for name in key) for row in rows(small, table)}
        assert kept < {tuple(row[name] for name in key) for row in rows(large, table)}
    pictures = {name: value for name, value in hashes(small).items() if "/" in name}
    assert pictures.items() <= hashes(large).items()


@pytest.mark.slow
def test_more_products_leave_products_tastes_and_most_clicks_as_they_were(tmp_path):
    for folder, products in (("few", 100), ("many", 110)):
        synthesize(tmp_path / folder, 200, products, num_references=0, picture_side=16)
    few, many = rows(tmp_path / "few", "products"), rows(tmp_path / "many", "products")
    assert many[:100] == few
    assert truth(tmp_path / "few", "user") == truth(tmp_path / "many", "user")
    old, new = ([click for row in rows(tmp_path / folder, "histories") for click in row["clicks"]] for folder in ("few", "many"))
    assert len(old) == len(new)
    changed = sum(before != after for before, after in zip(old, new, strict=True)) / len(old)
    assert 0 < changed < 0.25  # a tenth of the products is new, and each click looks at three


@pytest.mark.slow
def test_batches_and_order_of_work_do_not_matter(tmp_path, monkeypatch):
    synthesize(tmp_path / "a", 50, 25, num_references=30, picture_side=32)
    monkeypatch.setattr(synth, "USERS_PER_BATCH", 7)
    monkeypatch.setattr(synth, "PICTURES_PER_BATCH", 4)
    synthesize(tmp_path / "b", 50, 25, num_references=30, picture_side=32)
    for table in ALL_TABLES:
        assert rows(tmp_path / "a", table) == rows(tmp_path / "b", table)
    assert truth(tmp_path / "a", "user") == truth(tmp_path / "b", "user")


@pytest.mark.slow
def test_users_click_in_their_favourite_styles_60_to_90_percent_and_else_elsewhere(tmp_path):
    synthesize(tmp_path, num_users=1500, num_products=80, num_references=0, picture_side=16)
    styles = {product: row["styles"][0] for product, row in truth(tmp_path, "product").items()}
    users = truth(tmp_path, "user")
    shares = []
    for row in rows(tmp_path, "histories"):
        clicked = [styles[click["product_id"]] for click in row["clicks"]]
        shares.append(np.mean([style in users[row["user_id"]]["styles"] for style in clicked]))
        moments = [click["clicked_at"] for click in row["clicks"]]
        assert moments == sorted(moments)
    assert 0.6 <= min(shares) < 0.65
    assert 0.85 < max(shares) <= 0.9
    numbers = [len(row["styles"]) for row in users.values()]
    assert set(numbers) == {1, 2}
    assert 0.45 < numbers.count(1) / len(numbers) < 0.55
    favourites = [style for row in users.values() for style in row["styles"]]
    assert min(favourites.count(style) for style in STYLES) > 0.8 * len(favourites) / len(STYLES)


@pytest.mark.slow
def test_clicked_titles_lean_to_the_users_tone(tmp_path):
    synthesize(tmp_path, num_users=400, num_products=200, num_references=0, picture_side=16)
    tones = {product: row["tone"] for product, row in truth(tmp_path, "product").items()}
    users = truth(tmp_path, "user")
    clicks = [(row["user_id"], click["product_id"]) for row in rows(tmp_path, "histories") for click in row["clicks"]]
    match = np.mean([tones[product] == users[user]["tone"] for user, product in clicks])
    assert 0.6 < match < 0.8  # a third by chance


def test_the_tables_are_the_inputs_of_a_refresh(shop):
    inputs = open_inputs(shop, ALL_TABLES)
    products = {row["product_id"] for row in rows(shop, "products")}
    pairs = [(row["user_id"], row["product_id"]) for row in rows(shop, "pairs")]
    assert len(pairs) == len(set(pairs)) == 160
    assert {product for _, product in pairs} <= products
    assert {click["product_id"] for row in rows(shop, "histories") for click in row["clicks"]} <= products
    assert {row["locale"] for row in rows(shop, "pairs")} == set(LOCALES)
    references = [(row["user_id"], row["product_id"]) for row in rows(shop, "references")]
    assert len(references) == 50
    assert set(references) < set(pairs)
    assert len({user for user, _ in references}) == 40  # every user has one before anyone has the next
    for row in [*rows(shop, "products"), *rows(shop, "references")]:
        picture = images.read_picture(inputs.resolve(row["image"]))
        assert (picture.mode, picture.size) == ("RGB", (256, 256))


def test_cutouts_have_soft_edges_and_fit_the_frame_as_they_are(shop):
    for row in rows(shop, "products"):
        cutout = images.read_picture(shop / row["cutout"])
        alpha = np.asarray(cutout.getchannel("A"))
        assert alpha[0].max() == alpha[-1].max() == alpha[:, 0].max() == alpha[:, -1].max() == 0
        assert 0.04 < (alpha == 255).mean() < 0.5
        assert ((alpha > 0) & (alpha < 255)).sum() > 100
        placed, _ = images.place_product(cutout, row["scale"])
        left, top, right, bottom = images.product_box(cutout)
        box = (left, top, right, bottom)
        assert np.array_equal(np.asarray(placed.crop(box)), np.asarray(cutout.crop(box)))  # scaled by nothing


def test_a_reference_is_the_product_itself_on_the_users_style(shop):
    cutouts = {row["product_id"]: row["cutout"] for row in rows(shop, "products")}
    for row in rows(shop, "references")[:20]:
        cutout = np.asarray(images.read_picture(shop / cutouts[row["product_id"]]), np.int16)
        creative = np.asarray(images.read_picture(shop / row["image"]), np.int16)
        solid = cutout[..., 3] == 255
        assert np.abs(creative[solid] - cutout[solid][:, :3]).mean() < 8  # JPEG only
    users = np.arange(40)
    tastes = people.make_tastes(0, None, users, 60)
    style = people.reference_styles(0, None, users, 0 * users, tastes)
    assert all(tastes.names[each] in tastes.styles(user) for user, each in enumerate(style))


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[\w-]+", text.lower()))


def test_reference_titles_use_only_the_products_words_and_put_the_users_tone_first(shop):
    products = {row["product_id"]: row for row in rows(shop, "products")}
    users = truth(shop, "user")
    catalog = people.make_catalog(0, None, 60)
    for row in rows(shop, "references"):
        product = products[row["product_id"]]
        words = catalog.words(int(row["product_id"][-7:]))
        favourite = words.points[TONES.index(users[row["user_id"]]["tone"])]
        allowed = words_of(product["title"]) | {word for point in product["selling_points"] for word in words_of(point)}
        assert len(set(row["titles"])) == 2
        for title in row["titles"]:
            assert title.startswith(words.head)
            assert title.removeprefix(words.head)[1:].strip().startswith(favourite)
            assert all(point in title for point in product["selling_points"])
            if product["locale"] == "en":
                assert words_of(title) <= allowed
            else:
                assert set(re.split("[，：]", title)) <= {words.head, *product["selling_points"]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_said_and_drawn(kind):
    for locale in LOCALES:
        heads = {product_words(kind, "red", "dotted", locale, choice, (0, 1, 0)).head for choice in range(3)}
        assert len(heads) == 3
        for head in heads:
            assert ("红色波点" in head) if locale == "zh" else head.startswith("Dotted red ")
        for word in (*COLOURS, *PATTERNS):
            colour, pattern = (word, "plain") if word in COLOURS else ("blue", word)
            words = product_words(kind, colour, pattern, locale, 0, (0, 0, 0))
            assert len({words.head, *words.points}) == 4
    for side in (16, 64, 300):
        assert draw_cutout(kind, "teal", "checked", side, np.random.default_rng(1)).size == (side, side)


@pytest.mark.slow
def test_splits_share_no_user_product_or_look(tmp_path):
    looks = {}
    for split in ("train", "eval"):
        synthesize(tmp_path / split, 20, 120, num_references=0, picture_side=16, split=split)
        catalog = people.make_catalog(0, split, 20_000)
        looks[split] = {catalog.look(product) for product in range(len(catalog))}
    assert not looks["train"] & looks["eval"]
    whole = len(KINDS) * len(COLOURS) * len(PATTERNS)
    assert len(looks["train"] | looks["eval"]) == whole
    assert 0.15 < len(looks["eval"]) / whole < 0.25
    assert {kind for kind, _, _ in looks["eval"]} == set(KINDS)
    other = people.make_catalog(99, "eval", 2000)  # another seed's eval was not trained on either
    assert {other.look(product) for product in range(len(other))} <= looks["eval"]
    for table, column in (("products", "product_id"), ("histories", "user_id")):
        train, held_out = ({row[column] for row in rows(tmp_path / split, table)} for split in ("train", "eval"))
        assert not train & held_out
    pictures = [set(hashes(tmp_path / split / "images").values()) for split in ("train", "eval")]
    assert not pictures[0] & pictures[1]


def test_kinds_and_styles_are_as_many_as_promised_and_no_two_kinds_look_alike():
    assert len(KINDS) >= 12
    assert len(STYLES) >= 8
    assert min(len(COLOURS), len(PATTERNS)) >= 6
    shapes = [
        np.asarray(draw_cutout(kind, "red", PATTERNS[0], 64, np.random.default_rng(3)).getchannel("A")) > 127 for kind in KINDS
    ]
    for number, shape in enumerate(shapes):
        for other in shapes[:number]:
            assert (shape ^ other).sum() > 0.1 * min(shape.sum(), other.sum())


@pytest.mark.parametrize("what", ["colour", "pattern"])
def test_every_colour_and_pattern_is_seen_on_the_product(what):
    looks = {"colour": [(each, PATTERNS[0]) for each in COLOURS], "pattern": [("red", each) for each in PATTERNS]}[what]
    drawn = [np.asarray(draw_cutout("mug", *look, 64, np.random.default_rng(3)), np.int16) for look in looks]
    for number, first in enumerate(drawn):
        for second in drawn[:number]:
            both = (first[..., 3] == 255) & (second[..., 3] == 255)
            assert np.abs(first[both] - second[both]).mean() > 2


def grid_features(picture: Image.Image) -> np.ndarray:
    """(16, 7): mean colour, contrast and edges of each cell of a 4x4 grid."""
    pixels = np.asarray(picture, np.float64) / 255
    grey = pixels.mean(axis=2)
    edges = [np.abs(np.diff(grey, axis=axis, append=0)) > 0.06 for axis in (0, 1)]
    stacked = np.dstack([pixels, grey**2, *edges, edges[0] & edges[1]])
    return stacked.reshape(4, 16, 4, 16, -1).mean(axis=(1, 3)).reshape(16, -1)


def styled_pictures(part: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """((count, 16, 7) features, (count,) style numbers) of products on backgrounds, 64x64."""
    pictures, answers = [], np.arange(count) % len(STYLES)
    for number, style in enumerate(answers):
        rng = np.random.default_rng([part, number])
        look = [list(names)[rng.integers(len(names))] for names in (KINDS, COLOURS, PATTERNS)]
        background = draw_background(list(STYLES)[style], 64, rng)
        pictures.append(grid_features(set_on_background(draw_cutout(*look, 64, rng), background)))
    return np.array(pictures), answers


def linear_accuracy(seen: np.ndarray, labels: np.ndarray, fresh: np.ndarray, answers: np.ndarray) -> float:
    x, z = (np.c_[part.reshape(len(part), -1), np.ones(len(part))] for part in (seen, fresh))
    weights = np.linalg.solve(x.T @ x + 1e-3 * np.eye(x.shape[1]), x.T @ np.eye(len(STYLES))[labels])
    return float(((z @ weights).argmax(axis=1) == answers).mean())


@pytest.mark.slow
def test_styles_can_be_told_apart_but_not_by_colour_alone():
    (seen, labels), (fresh, answers) = styled_pictures(0, 500), styled_pictures(1, 200)
    assert linear_accuracy(seen, labels, fresh, answers) > 0.8
    mean_colours = [part[..., :3].mean(axis=1) for part in (seen, fresh)]
    assert linear_accuracy(mean_colours[0], labels, mean_colours[1], answers) < 0.65


def test_a_style_is_a_distribution():
    for style in STYLES:
        first, second = (draw_background(style, 64, np.random.default_rng(seed)) for seed in (1, 2))
        assert np.abs(np.asarray(first, np.int16) - np.asarray(second, np.int16)).mean() > 3


@pytest.mark.parametrize(("users", "products"), [(1, 1), (3, 2), (5, 9)])
def test_tiny_shops_work(tmp_path, users, products):
    summary = synthesize(tmp_path, users, products, picture_side=32)
    assert summary.pairs == users * min(4, products)
    inputs = open_inputs(tmp_path, ALL_TABLES)
    pairs = [tuple(row.values()) for row in rows(tmp_path, "pairs")]
    assert len(set(pairs)) == summary.pairs == inputs["pairs"].num_rows
    stocked = {row["styles"][0] for row in truth(tmp_path, "product").values()}
    assert all(set(row["styles"]) <= stocked for row in truth(tmp_path, "user").values())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"num_users": 0}, "num_users: expected at least 1, found 0"),
        ({"num_products": -2}, "num_products: expected at least 1, found -2"),
        ({"num_pairs": 0}, "num_pairs: expected at least 1"),
        ({"num_pairs": 21}, "21 is more than 4 users x 5 products"),
        ({"num_references": 17}, r"num_references: expected 0\.\.16, found 17"),
        ({"split": "test"}, "split: expected one of train, eval, found 'test'"),
        ({"picture_side": 8}, r"picture_side: expected 16\.\.2048"),
    ],
)
def test_counts_out_of_range_are_settings_errors(tmp_path, settings, problem):
    with pytest.raises(SettingsError, match=problem):
        synthesize(tmp_path / "shop", **({"num_users": 4, "num_products": 5} | settings))
    assert not (tmp_path / "shop").exists()


def test_a_shop_cut_short_cannot_be_opened(tmp_path, monkeypatch):
    synthesize(tmp_path, 3, 10, picture_side=16)
    monkeypatch.setattr(synth_shop.Shop, "draw_reference", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthesize(tmp_path, 3, 10, picture_side=16)
    with pytest.raises(InputError, match="is missing"):
        open_inputs(tmp_path)
    assert not list(tmp_path.glob(".synth-*"))


def test_jump_moves_keys_only_to_new_buckets():
    keys = draw(1, np.arange(5000))
    before, after = jump(keys, np.full(5000, 20)), jump(keys, np.full(5000, 25))
    assert set(before) == set(range(20))
    assert np.all((after == before) | (after >= 20))
    assert 0.15 < (after != before).mean() < 0.25
    assert np.bincount(before).min() > 180


def test_blocks_are_balanced_and_extend():
    longer = shuffled_blocks(3, 7, 30)
    assert np.array_equal(shuffled_blocks(3, 7, 12), longer[:12])
    assert sorted(longer[:7]) == sorted(longer[7:14]) == list(range(7))
    assert not np.array_equal(longer[:7], longer[7:14])


MEASURE = """
import resource, sys
from adgen.shop.synthetic.synth import synthesize
synthesize(sys.argv[1], int(sys.argv[2]), 20, num_references=0, picture_side=16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.long
def test_memory_does_not_grow_with_users_and_pairs(tmp_path):
    peaks = []
    for users in (20_000, 80_000):
        command = [sys.executable, "-c", MEASURE, str(tmp_path / str(users)), str(users)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] < peaks[0] + 60, peaks
