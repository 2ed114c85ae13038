"""The catalog: made once a product, found by id, incremental, and never half-written."""

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.runs import Crash, CrashingStorage
from support.shops import CAMPAIGN, MODEL, CountingEncoder, SmallShop, encoders, small_shop, tokenize
from support.threads import Counted

from adgen.config import PictureSettings
from adgen.creatives import layout
from adgen.creatives.storage import Storage
from adgen.creatives.stores import open_storage
from adgen.errors import InputError, RunError, StoreError
from adgen.images import use_limits
from adgen.shop.catalog import rows as catalog_rows
from adgen.shop.catalog.buckets import bucket_count, product_key, read_products, split_products
from adgen.shop.catalog.catalog import CatalogPlace, build_catalog, last_catalog, open_catalog
from adgen.shop.inputs.tables import open_inputs
from adgen.shop.similarity import embed_titles


@pytest.fixture
def shop(tmp_path: Path) -> SmallShop:
    return small_shop(tmp_path / "inputs")


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "store")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    names, read = [], catalog_rows.read_bytes
    monkeypatch.setattr(catalog_rows, "read_bytes", lambda uri: names.append(uri.rpartition("inputs/")[2]) or read(uri))
    return names


def facts_of(catalog, product: str) -> dict:
    return catalog.facts([product]).to_pylist()[0]


def test_a_shop_whose_pairs_and_clicks_name_none_of_its_products_is_planned_night_after_night(shop, folder):
    """As with ids of another system: the catalog is empty, and each pair says why there is no creative."""
    shop.products = {f"other-{name}": row for name, row in shop.products.items()}
    for _ in range(2):
        night = shop.night(folder)
        assert {row["reason"] for row in night.generate} == {"unknown_product"}


def test_a_table_that_cannot_be_read_to_its_end_is_named(shop, folder):
    """Whoever joins it has errors of its own."""
    inputs = shop.save()
    path = shop.folder / "histories.parquet"
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    path.write_bytes(b"PAR1" + bytes(len(data) - 4 - footer) + data[-footer:])
    scratch = shop.folder.parent / "scratch"
    with pytest.raises(InputError, match=r"histories.parquet: cannot be read to its end"):
        build_catalog(inputs, CatalogPlace(folder, MODEL, CAMPAIGN, scratch / "cache"), encoders(), scratch)


def test_pictures_that_wait_to_be_reduced_count_as_decoded(shop, folder):
    """However many threads read them."""
    counter = Counted()

    def reduce(picture: Image.Image) -> Image.Image:
        with counter:
            time.sleep(0.01)
        return picture

    one = PictureSettings(max_decoded_bytes=16 * 16 * 8)
    scratch = shop.folder.parent / "scratch"
    place = CatalogPlace(folder, MODEL, CAMPAIGN, scratch / "cache")
    build_catalog(shop.save(), place, replace(encoders(), reduce=reduce, limits=one), scratch)
    use_limits(PictureSettings())
    assert counter.most == 1


def test_codes_titles_and_embeddings_are_found_by_product(shop, store: Storage):
    encoder = CountingEncoder()
    catalog = shop.catalog(store, encoder)
    ids = ["p3", "p0", "p3"]
    expected = [encoder([Image.open(shop.folder / shop.products[name]["image"])])[0] for name in ids]
    assert np.array_equal(catalog.codes(ids), expected)
    titles = [shop.products[name]["title"] for name in ids]
    assert catalog.titles(ids) == titles
    assert catalog.title_ids(ids) == [tokenize(title) for title in titles]
    assert np.array_equal(catalog.embeddings([*ids, "unknown"])[:3], embed_titles(titles).astype(np.float16))
    assert not catalog.embeddings(["unknown"]).any()
    assert len(set(catalog.facts(["p0", "p1", "p2"])["click_hash"].to_pylist())) == 3
    assert catalog.codes([]).shape[0] == 0
    with pytest.raises(InputError, match="'unknown' has no picture codes"):
        catalog.codes(["p0", "unknown"])


def test_only_clicked_products_have_codes_and_only_needed_ones_are_there(shop, folder, reads):
    shop.histories, shop.pairs = {"u0": ["p1", "p2"]}, [("u0", "p3", None, None)]
    encoder = CountingEncoder()
    catalog = shop.catalog(folder, encoder)
    assert encoder.pictures == 2
    assert sorted(reads) == ["cutouts/1.png", "cutouts/2.png", "images/1.png", "images/2.png", "images/3.png"]
    assert [facts_of(catalog, name)["product_id"] for name in ("p1", "p3", "p4")] == ["p1", "p3", None]
    assert (facts_of(catalog, "p3")["click_hash"], facts_of(catalog, "p3")["product_hash"] is None) == (None, False)


def test_pictures_that_did_not_change_are_not_read_again(shop, folder, reads):
    first = shop.catalog(folder)
    reads.clear()
    encoder = CountingEncoder()
    second = shop.catalog(folder, encoder)
    assert (reads, encoder.pictures, second.index) == ([], 0, first.index)
    shop.paint("images/4.png", 999)
    third = shop.catalog(folder, encoder)
    assert (reads, encoder.pictures) == (["images/4.png"], 1)
    others = [name for name in shop.products if name != "p4"]
    assert np.array_equal(third.codes(others), first.codes(others))
    assert not np.array_equal(third.codes(["p4"]), first.codes(["p4"]))
    reads.clear()
    shop.products["p5"]["title"] = "another name"
    fourth = shop.catalog(folder, encoder)
    assert (reads, encoder.pictures, fourth.titles(["p5"])) == ([], 1, ["another name"])
    assert fourth.title_ids(["p5"]) == [tokenize("another name")]


def test_the_same_bytes_with_another_time_are_not_encoded_again(shop, folder, reads):
    first = shop.catalog(folder)
    reads.clear()
    path = shop.folder / "images/4.png"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    encoder = CountingEncoder()
    second = shop.catalog(folder, encoder)
    assert (reads, encoder.pictures) == (["images/4.png"], 0)
    assert second.facts(["p4"])["click_hash"] == first.facts(["p4"])["click_hash"]


def test_a_product_clicked_for_the_first_time_gets_its_codes(shop, folder):
    histories, shop.histories = shop.histories, {"u0": ["p1"]}
    shop.pairs = [("u0", name, None, None) for name in shop.products]
    shop.catalog(folder)
    encoder = CountingEncoder()
    shop.histories = histories
    catalog = shop.catalog(folder, encoder)
    assert encoder.pictures == len(shop.products) - 1
    assert catalog.codes(list(shop.products)).shape == (len(shop.products), 16)


def test_a_picture_changed_while_nobody_clicks_it_is_encoded_when_somebody_does(shop, folder):
    histories = shop.histories
    shop.pairs = [("u0", name, None, None) for name in shop.products]
    before = shop.catalog(folder).codes(["p3"])
    shop.histories = {"u0": ["p1"]}
    shop.paint("images/3.png", 999)
    shop.catalog(folder)
    shop.histories = histories
    assert not np.array_equal(shop.catalog(folder).codes(["p3"]), before)


def test_an_unreadable_picture_stays_with_its_reason_and_is_tried_again(shop, folder, reads):
    data = (shop.folder / "images/4.png").read_bytes()
    (shop.folder / "images/4.png").write_bytes(data[:300])
    catalog = shop.catalog(folder)
    assert facts_of(catalog, "p4")["image_reason"] == "truncated"
    assert facts_of(catalog, "p4")["click_hash"] is None
    assert facts_of(catalog, "p4")["cutout_reason"] is None
    reads.clear()
    shop.catalog(folder)
    assert reads == ["images/4.png"]
    (shop.folder / "images/4.png").write_bytes(data)
    catalog = shop.catalog(folder)
    assert facts_of(catalog, "p4")["image_reason"] is None
    assert catalog.codes(["p4"]).shape == (1, 16)


def test_a_bad_night_keeps_the_codes_of_the_last_good_reading(shop, folder):
    before = shop.catalog(folder)
    (shop.folder / "images/4.png").unlink()
    (shop.folder / "cutouts/4.png").write_bytes(b"")
    after = shop.catalog(folder)
    facts = facts_of(after, "p4")
    assert (facts["image_reason"], facts["cutout_reason"]) == ("missing_file", "unreadable")
    assert after.facts(["p4"])["click_hash"] == before.facts(["p4"])["click_hash"]
    assert np.array_equal(after.codes(["p4"]), before.codes(["p4"]))
    assert facts["product_hash"] == facts_of(before, "p4")["product_hash"]


def test_without_a_cutout_the_product_is_cut_from_its_picture(shop, folder):
    facts = facts_of(shop.catalog(folder), "p3")
    assert facts["cutout"] is None
    assert facts["cutout_hash"] == facts["image_hash"]
    (shop.folder / "images/3.png").unlink()
    assert facts_of(shop.catalog(folder), "p3")["cutout_reason"] == "missing_file"


@pytest.mark.parametrize("source", ["cutout", "image"])
def test_a_product_that_cannot_be_cut_out_is_found_once_and_forgiven_when_its_picture_changes(shop, folder, reads, source):
    name = {"cutout": "p4", "image": "p3"}[source]  # p3 has no cut-out
    path = shop.folder / shop.products[name][source]
    good = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path) if source == "image" else Image.new("RGBA", (16, 16)).save(path)
    first = shop.catalog(folder)
    facts = facts_of(first, name)
    assert (facts["cutout_reason"], facts["image_reason"]) == ("no_cutout", None)
    assert first.codes([name]).shape == (1, 16)  # a history may show it
    reads.clear()
    shop.products[name]["title"] = "another name"
    assert facts_of(shop.catalog(folder), name)["cutout_reason"] == "no_cutout"
    assert reads == []
    path.unlink()
    assert facts_of(shop.catalog(folder), name)["cutout_reason"] == "missing_file"
    Image.fromarray(noise).save(path) if source == "image" else Image.new("RGBA", (16, 16)).save(path)
    assert facts_of(shop.catalog(folder), name)["cutout_reason"] == "no_cutout"
    path.write_bytes(good)
    facts = facts_of(shop.catalog(folder), name)
    assert (facts["cutout_reason"], facts["product_hash"] is None) == (None, False)


def test_a_picture_outside_the_roots_is_named_nowhere(shop, folder):
    shop.products["p4"] |= {"image": "../../etc/passwd", "cutout": "/etc/passwd"}
    facts = facts_of(shop.catalog(folder), "p4")
    assert (facts["image"], facts["cutout"]) == (None, None)
    assert (facts["image_reason"], facts["cutout_reason"]) == ("outside_roots", "outside_roots")
    assert facts["product_hash"] is None


def test_of_rows_with_one_product_id_one_is_taken_whatever_their_order(shop, folder, tmp_path):
    double = {"product_id": "p4"} | shop.products["p4"] | {"title": "aaa"}
    shop.rows_of_products = [double, double | {"title": "zzz"}, double | {"product_id": None}]
    first = shop.catalog(folder)
    shop.rows_of_products.reverse()
    assert shop.catalog(open_storage(tmp_path / "other")).titles(["p4"]) == first.titles(["p4"]) == ["aaa"]


def test_the_index_is_valid_until_a_new_one_is_written(shop, folder):
    old = shop.catalog(folder)
    shop.products["p4"]["title"] = "another name"
    inputs, scratch = shop.save(), shop.folder.parent / "scratch"
    for acts in range(40):
        storage = CrashingStorage(folder, acts)
        try:
            build_catalog(inputs, CatalogPlace(storage, MODEL, CAMPAIGN, scratch / f"c{acts}"), encoders(), scratch)
        except Crash:
            found = last_catalog(folder, MODEL, CAMPAIGN, scratch / "reader")
            assert found.titles(["p4"]) in (old.titles(["p4"]), ["another name"])
            assert found.codes(list(shop.products)).shape == (12, 16)
        else:
            break
    assert acts > 3
    assert last_catalog(folder, MODEL, CAMPAIGN, scratch / "reader").titles(["p4"]) == ["another name"]
    again = open_catalog(folder, MODEL, old.index.name, scratch / "reader")
    assert again.titles(["p4"]) == old.titles(["p4"])


def test_two_campaigns_with_one_model_do_not_disturb_each_other(shop, folder, tmp_path):
    ours = shop.catalog(folder)
    other = small_shop(tmp_path / "others" / "inputs", num_products=4, num_users=2)
    scratch = tmp_path / "others" / "scratch"
    build_catalog(other.save(), CatalogPlace(folder, MODEL, "winter", scratch / "cache"), encoders(), scratch)
    assert last_catalog(folder, MODEL, CAMPAIGN, scratch / "cache").index == ours.index


def test_a_catalog_pickles_and_its_files_are_fetched_once_by_many(shop, store: Storage, tmp_path):
    index = shop.catalog(store).index
    catalog = pickle.loads(pickle.dumps(open_catalog(store, MODEL, index.name, tmp_path / "node")))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: pickle.loads(pickle.dumps(catalog)).codes(["p1"]).tolist(), range(8)))
    assert all(each == found[0] for each in found)
    files = list((tmp_path / "node").iterdir())
    assert [file.name for file in files] == [f"{index.buckets[0].ids.sha256}.arrow"]
    assert catalog.fetch() == files[0].stat().st_size


def test_a_file_that_is_not_what_the_index_says_is_refused(shop, folder, tmp_path):
    index = shop.catalog(folder).index
    file = tmp_path / "store" / layout.catalog(MODEL) / "files" / f"{index.buckets[0].ids.sha256}.arrow"
    file.write_bytes(b"something else")
    with pytest.raises(StoreError, match="not what the catalog's index says"):
        open_catalog(folder, MODEL, index.name, tmp_path / "node").codes(["p1"])
    with pytest.raises(StoreError, match="not there"):
        open_catalog(folder, MODEL, "f" * 64, tmp_path / "node")


def test_codes_that_do_not_fit_are_refused(shop, folder):
    with pytest.raises(RunError, match="the image tokenizer gave"):
        shop.catalog(folder, lambda pictures: np.full((len(pictures), 16), 70_000))


def test_another_embedding_embeds_again_and_reads_nothing(shop, folder, reads):
    shop.catalog(folder)
    reads.clear()
    scratch = shop.folder.parent / "scratch"
    eights = replace(encoders(), embed=lambda titles: np.ones((len(titles), 8)) * 0.25, embedding="eights", embedding_size=8)
    catalog = build_catalog(shop.save(), CatalogPlace(folder, MODEL, CAMPAIGN, scratch / "cache"), eights, scratch)
    assert reads == []
    assert catalog.embeddings(["p1"]).tolist() == [[0.25] * 8]


def test_buckets_are_ranges_of_keys_and_split_nothing_twice(tmp_path):
    shop = small_shop(tmp_path / "inputs", num_products=40, num_users=40)
    inputs = shop.save()
    numbers = split_products(inputs, tmp_path / "scratch", 8)
    found = [read_products(tmp_path / "scratch", number) for number in numbers]
    for number, table in zip(numbers, found, strict=True):
        assert table["key"].to_pylist() == [product_key(name) for name in table["product_id"].to_pylist()]
        assert {key >> 61 for key in table["key"].to_pylist()} == {number}
    assert sorted(name for table in found for name in table["product_id"].to_pylist()) == sorted(shop.products)
    assert [bucket_count(rows, 10) for rows in (0, 1, 10, 11, 40, 41)] == [1, 1, 1, 2, 4, 8]


def test_products_of_several_buckets_are_found_in_any_order(tmp_path, folder, monkeypatch):
    shop = small_shop(tmp_path / "inputs", num_products=40, num_users=40)
    monkeypatch.setattr("adgen.shop.catalog.catalog.bucket_count", lambda rows: 8)
    catalog = shop.catalog(folder)
    assert len(catalog.index.buckets) == 8
    ids = [f"p{n}" for n in reversed(range(40))]
    assert catalog.titles(ids) == [shop.products[name]["title"] for name in ids]
    titles = embed_titles(catalog.titles(ids)).astype(np.float16)
    assert np.array_equal(catalog.embeddings(ids), titles)
    files = {bucket.ids.sha256 for bucket in catalog.index.buckets}
    shop.products["p4"]["title"] = "another name"
    after = {bucket.ids.sha256 for bucket in shop.catalog(folder).index.buckets}
    assert len(files - after) == 1


@pytest.mark.slow
def test_inputs_on_s3_are_read_once_and_give_the_same_hashes(shop, folder, tmp_path, s3_uri, aws_environment, reads):
    local = shop.catalog(folder)
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    for path in filter(Path.is_file, shop.folder.rglob("*")):
        boto3.client("s3").upload_file(str(path), bucket, f"{prefix}/{path.relative_to(shop.folder)}")
    reads.clear()
    encoder, scratch = CountingEncoder(), tmp_path / "scratch"
    place = CatalogPlace(open_storage(tmp_path / "another"), MODEL, CAMPAIGN, scratch / "cache")
    for _ in range(2):
        catalog = build_catalog(open_inputs(s3_uri), place, encoders(encoder), scratch)
    assert (encoder.pictures, len(reads)) == (12, 20)
    products = list(shop.products)
    assert catalog.facts(products)["click_hash"] == local.facts(products)["click_hash"]
    assert catalog.facts(products)["product_hash"] == local.facts(products)["product_hash"]
    assert facts_of(catalog, "p1")["image_stamp"].startswith("etag:")


def test_a_shop_without_a_single_click_has_products_and_no_codes(tmp_path):
    shop = small_shop(tmp_path / "inputs", num_products=3, num_users=2)
    shop.save()
    pq.write_table(pa.table({"user_id": ["u0"], "clicks": pa.nulls(1)}), shop.folder / "histories.parquet")
    split_products(open_inputs(str(shop.folder)), tmp_path / "scratch", 1)
    assert not any(read_products(tmp_path / "scratch", 0)["clicked"].to_pylist())
