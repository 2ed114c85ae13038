"""The API of consumers: one run whatever is published meanwhile, few bytes a lookup, checked pictures."""

import hashlib
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from support.requests_of_s3 import counted
from support.runs import CAMPAIGN, SECRET, WrappedStorage, begin, make_rows, pair_ids, publish_rows, refresh, with_values

from adgen.creatives import compaction, layout, open_campaign
from adgen.creatives.ahead import map_ahead
from adgen.creatives.cleanup import remove_run
from adgen.creatives.compaction import ManifestWriter
from adgen.creatives.publish import read_pointer
from adgen.creatives.reading import ManifestReader, open_published
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.errors import ConsumerError, SettingsError
from adgen.records import REJECTED, bound_key, key_id, pair_id, user_key

OK_ONLY = [("status", "==", "ok")]


def test_rows_are_filtered_and_projected(store: Storage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compaction, "_ROWS_PER_GROUP", 4)
    rows = make_rows(store, pair_ids(40))
    run = publish_rows(store, rows, rows_per_file=10)
    everything = {row["pair_id"]: row for row in run.rows()}
    user, product = (rows[name][7].as_py() for name in ("user_key", "product_id"))
    for where, keeps in (
        ([("user_key", "==", user)], lambda row: row["user_key"] == user),
        (
            [("user_key", ">", user), ("product_id", "!=", product)],
            lambda row: row["user_key"] > user and row["product_id"] != product,
        ),
        ([("product_id", "in", [product, "none"])], lambda row: row["product_id"] == product),
        (
            [[("user_key", "==", user)], [("product_id", "==", product)]],
            lambda row: user == row["user_key"] or product == row["product_id"],
        ),
        ([("title_source", "==", "model")], lambda row: False),
        ([["user_key", "==", user]], lambda row: row["user_key"] == user),  # as JSON has it
        ([], lambda row: True),
    ):
        found = list(run.rows(["title", "pair_id"], where))
        assert {row["pair_id"] for row in found} == {pair for pair, row in everything.items() if keeps(row)}, where
        assert all(list(row) == ["title", "pair_id"] for row in found)


@pytest.mark.parametrize(
    ("columns", "where", "said"),
    [
        (["colour"], None, "'colour' is no column of a manifest; it has schema_version, pair_id"),
        (None, [("colour", "==", "red")], "'colour' is no column"),
        (None, [("status", "~", "ok")], "where: .*~"),
        (None, [("bytes", ">", "many")], "where: "),
        (None, [("status", "ok")], "is no list of \\(column, operator, value\\)"),
        (None, [[]], "is no list of"),
    ],
)
def test_a_wrong_filter_is_named_before_anything_is_read(folder_store, columns, where, said):
    run = publish_rows(folder_store, make_rows(folder_store, pair_ids(2)))
    with pytest.raises(ConsumerError, match=said):
        run.rows(columns, where).__next__()


def test_a_lookup_fetches_a_row_group_of_one_file(s3_uri: str, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch):
    """Counted on S3: pointer, run.json, the file's end, what is compared, the rest. The footer is read once a run."""
    monkeypatch.setattr(compaction, "_ROWS_PER_GROUP", 1000)
    store = open_storage(s3_uri, s3_access)
    pairs = pair_ids(12_000)
    rows = make_rows(None, pairs)
    noise = [hashlib.sha256(pair.encode()).hexdigest() * 4 for pair in pairs]  # as large as real rows, and as hard to compress
    rows = with_values(rows, title=noise, user_key=[user_key(SECRET, pair) for pair in pairs])
    published = publish_rows(store, rows, rows_per_file=6000)
    assert len(published.run.manifest) == 2
    with counted(s3_access) as requests:
        run = open_campaign(s3_uri, CAMPAIGN, s3_access).published()
        assert requests == [("GetObject", layout.pointer(CAMPAIGN)), ("GetObject", layout.run_document(CAMPAIGN, run.run.run_id))]
        for number, most in ((3, 4), (4000, 4), (5, 3)):
            requests.clear()
            found = run.creative(f"product-{pairs[number][:2]}", user_key=user_key(SECRET, pairs[number]))
            assert found["pair_id"] == pairs[number]
            assert len(requests) <= most, requests
            assert len({key for _, key in requests}) == 1
            assert {name for name, _ in requests} == {"GetObject"}
    assert sum(piece for piece in requests.bytes) < 3 * sum(file.bytes for file in published.run.manifest) / 6


def test_a_filter_by_user_opens_no_other_file(store: Storage):
    rows = make_rows(store, pair_ids(40))
    run = publish_rows(store, rows, rows_per_file=10)
    user = rows["user_key"][7].as_py()
    for file in run.run.manifest:
        if not file.first_user_key <= user <= file.last_user_key:
            store.delete(file.key)
    assert {row["user_key"] for row in run.rows(where=[("user_key", "==", user)])} == {user}
    with pytest.raises(ConsumerError, match=r"is gone; read latest\.json again"):
        list(run.rows(where=OK_ONLY))


# -- one creative ----------------------------------------------------------------------------------------------


def test_one_creative_by_key_by_secret_and_by_campaign_key(store: Storage, tmp_path: Path):
    key, secret = b"campaign key of a test", b"user secret of a test"
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "secret").write_bytes(secret)
    for name in ("key", "secret"):
        (tmp_path / name).chmod(0o600)
    pair = pair_id(bound_key(key, CAMPAIGN), "anna", "mug", None, None)
    user = user_key(secret, "anna")
    rows = make_rows(store, [pair, *pair_ids(3)])
    rows = with_values(rows, user_key=[user, *rows["user_key"].to_pylist()[1:]], product_id=["mug", "a", "b", "c"])
    run = publish_rows(store, rows, key_ids={"campaign_key": key_id(key), "user_secret": key_id(secret)})
    found = run.creative("mug", user_key=user)
    assert found["pair_id"] == pair
    assert run.creative("mug", user_id="anna", user_secret=tmp_path / "secret") == found
    assert run.creative("mug", user_id="anna", campaign_key=tmp_path / "key") == found
    assert run.creative("lamp", user_key=user) is None
    assert run.creative("mug", user_id="bob", user_secret=tmp_path / "secret") is None
    with pytest.raises(ConsumerError, match=f"was made with user_secret {key_id(secret)}, and the one that was given is"):
        run.creative("mug", user_id="anna", user_secret=tmp_path / "key")
    with pytest.raises(ConsumerError, match=r"user_secret of its own .*: give the file with it"):
        run.creative("mug", user_id="anna")
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(SettingsError, match="everybody on this machine"):
        run.creative("mug", user_id="anna", user_secret=tmp_path / "secret")


def test_the_best_ok_variant_is_the_creative_unless_another_is_asked_for(folder_store: Storage):
    pair = pair_ids(1)[0]
    rows = pa.concat_tables([make_rows(folder_store, [pair], status=status) for status in (REJECTED, "ok", "ok")])
    rows = with_values(rows, variant=[0, 1, 2], rank=[2, 1, 0], title=[None, "second", "best"])
    reader = open_written(folder_store, rows)
    product, user = rows["product_id"][0].as_py(), rows["user_key"][0].as_py()
    assert reader.creative(product, user_key=user)["title"] == "best"
    assert reader.creative(product, user_key=user, variant=1)["title"] == "second"
    assert reader.creative(product, user_key=user, variant=0) is None


def open_written(store: Storage, rows: pa.Table):
    """A reader of rows that no refresh plans here."""
    run = begin(store, "written")
    with tempfile.TemporaryDirectory() as folder:
        writer = ManifestWriter(store, CAMPAIGN, run.run_id, Path(folder))
        writer.write(rows)
        files, counts = writer.close()
    return ManifestReader(store, run.document.model_copy(update={"manifest": files, "counts": counts}))


def test_pairs_of_one_user_and_product_are_told_apart(folder_store: Storage):
    rows = make_rows(folder_store, pair_ids(3))
    rows = with_values(rows, user_key=["u"] * 3, product_id=["mug"] * 3, locale=["de", "en", "en"], channel=[None, None, "feed"])
    run = publish_rows(folder_store, rows)
    with pytest.raises(ConsumerError, match=r"has it 3 times; say which: locale='de' channel=None"):
        run.creative("mug", user_key="u")
    assert run.creative("mug", user_key="u", locale="de")["locale"] == "de"
    assert run.creative("mug", user_key="u", locale="en", channel=None)["channel"] is None
    assert run.creative("mug", user_key="u", channel="feed")["channel"] == "feed"


# -- pictures --------------------------------------------------------------------------------------------------


def test_pictures_are_checked_and_come_in_order(store: Storage):
    refresh(store, pair_ids(40))
    run = open_campaign(store.uri, CAMPAIGN, getattr(store, "access", None)).published()
    rows = list(run.rows())
    found = list(run.pictures(rows, threads=4))
    assert [row["pair_id"] for row, _ in found] == [row["pair_id"] for row in rows if row["uri"]]
    assert all(data == f"{row['pair_id']} plain".encode() for row, data in found)
    damaged, gone, huge = [row for row, _ in found[:3]]
    store.put(damaged["uri"], b"x" * damaged["bytes"])
    store.delete(gone["uri"])
    store.put(huge["uri"], b"x" * 100_000)
    for row, said in (
        (damaged, "is not what its row says; do not show it"),
        (gone, "is missing"),
        (huge, "is not what its row says"),
    ):
        with pytest.raises(ConsumerError, match=f"{row['uri']} {said}"):
            run.picture(row)
    with pytest.raises(ConsumerError, match="has no picture; its status is"):
        run.picture(next(row for row in rows if row["uri"] is None))
    with pytest.raises(ConsumerError, match="is missing"):
        list(run.pictures([gone]))
    with pytest.raises(ConsumerError, match="is not what its row says"):
        run.picture(gone | {"uri": "private/forgotten/x"})


def test_only_so_many_results_wait_for_who_takes_them():
    begun, lock = [], threading.Lock()

    def act(number: int) -> int:
        with lock:
            begun.append(number)
        return number * number

    results = map_ahead(act, iter(range(1000)), threads=3)
    assert [next(results) for _ in range(10)] == [number * number for number in range(10)]
    assert len(begun) <= 10 + 6
    results.close()
    assert len(begun) <= 10 + 6


def test_an_error_is_raised_in_its_items_place():
    def act(number: int) -> int:
        if number == 5:
            raise ConsumerError("five")
        return number

    results = map_ahead(act, range(100), 4)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ConsumerError, match="five"):
        next(results)


# -- a pointer that moves --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_was_opened_stays_itself_while_others_are_published(store: Storage):
    """A writer publishes all the time; whatever a reader takes of one run, rows, lookups or pictures, is of that run."""
    pairs, stop = pair_ids(12), threading.Event()
    refresh(store, pairs, "look 0", rows_per_file=4)
    campaign = open_campaign(store.uri, CAMPAIGN, getattr(store, "access", None))

    def publish_again_and_again() -> int:
        number = 0
        while not stop.is_set():
            number += 1
            refresh(store, pairs, f"look {number}", rows_per_file=4)
        return number

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(publish_again_and_again)
        try:
            seen = set()
            while len(seen) < 3 and not writer.done():
                run = campaign.published()
                rows = list(run.rows())
                looks = {row["title"] for row in rows if row["title"]}
                pictures = {data.decode().partition(" ")[2] for _, data in run.pictures(rows, threads=2)}
                one = next(row for row in rows if row["title"])
                found = run.creative(one["product_id"], user_key=one["user_key"])
                assert (len(rows), looks, pictures, found) == (12, {one["title"]}, {one["title"]}, one)
                seen |= looks
        finally:
            stop.set()
        writer.result()
    assert len(seen) == 3


def test_a_run_that_is_removed_between_pointer_and_run_json_is_followed_by_the_next(folder_store: Storage):
    old = refresh(folder_store, pair_ids(4), "old")

    class Late(WrappedStorage):
        def act(self, name: str, *arguments):
            found = super().act(name, *arguments)
            if (
                name == "get"
                and arguments[0].endswith("latest.json")
                and read_pointer(folder_store, CAMPAIGN)[0].run_id == old.run_id
            ):
                refresh(folder_store, pair_ids(4), "new")
                remove_run(folder_store, old.document)
            return found

    assert {row["title"] for row in open_published(Late(folder_store), CAMPAIGN).rows()} == {"new", None}


_BASE = """
import sys
for name in ("numpy", "pandas", "duckdb", "torch", "ray", "PIL", "scipy"):
    sys.modules[name] = None
from adgen.creatives import open_campaign
run = open_campaign(sys.argv[1], sys.argv[2]).published()
rows = list(run.rows(["user_key", "product_id", "uri", "sha256", "bytes"], where=[("status", "==", "ok")]))
assert len(list(run.pictures(rows))) == len(rows) == 3
assert run.creative(rows[0]["product_id"], user_key=rows[0]["user_key"])["uri"] == rows[0]["uri"]
assert list(run.changes_since(run.run.run_id)) == []
"""


def test_the_api_takes_the_base_install_only(folder_store: Storage):
    refresh(folder_store, pair_ids(4))
    done = subprocess.run([sys.executable, "-c", _BASE, folder_store.uri, CAMPAIGN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
