"""`adgen diff`: which creatives differ between two runs, and the cause that the lineage has of each."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import CAMPAIGN, WrappedStorage, make_rows, pair_ids, publish_rows, with_values
from support.shops import small_shop

from adgen.cli import main
from adgen.creatives.compaction import compact
from adgen.creatives.diff import diff_runs
from adgen.creatives.documents import RunDocument, utc_now
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError, StoreError
from adgen.records import FAILED, LINEAGE, REJECTED

pytestmark = pytest.mark.usefixtures("aws_environment")
MADE = {"product_hash": "p", "history_hashes": ["a", "b"], "model_digest": "m", "settings_digest": "s", "seed": 1}


def publish(store: Storage, rows: pa.Table, made: dict[str, dict] | None = None, **digests: str) -> str:
    """Publish the rows with their lineage (none: without); `made` by pair is what differs from MADE. The run's id."""
    common = {"user_id": "u", "product_id": "p", "attempt": 0, "variant": 0}
    pairs = rows["pair_id"].to_pylist()
    lineage = [{"pair_id": pair, **common, **MADE, **(made or {}).get(pair, {})} for pair in pairs]
    table = None if made is None else pa.Table.from_pylist(lineage, LINEAGE)
    return publish_rows(store, rows, table, digests=digests).run.run_id


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({"product_hash": "other"}, ["product"]),
        ({"history_hashes": ["b", "a"]}, ["history"]),
        ({"model_digest": "other"}, ["model"]),
        ({"settings_digest": "other"}, ["settings"]),
        ({"seed": 2}, ["settings"]),
        ({"product_hash": "other", "history_hashes": ["a"], "seed": 3}, ["product", "history", "settings"]),
        ({}, ["unknown"]),
        ({"product_hash": None}, ["unknown"]),
    ],
)
def test_the_lineage_says_why_a_creative_changed(store: Storage, what, why):
    pairs = pair_ids(3)
    before = publish(store, make_rows(store, pairs), {})
    after = publish(store, pa.concat_tables([make_rows(store, pairs[:2]), make_rows(store, pairs[2:], "new")]), {pairs[2]: what})
    (found,) = diff_runs(store, CAMPAIGN, before, after).changes
    assert (found["kind"], found["pair_id"], found["why"]) == ("changed", pairs[2], why)
    assert (found["before"]["title"], found["after"]["title"]) == ("plain", "new")


def test_rules_rank_and_work_done_again_are_told_from_other_inputs(store: Storage):
    pairs = pair_ids(3)
    old = with_values(make_rows(store, pairs), fingerprint=["f"] * 3, rank=[0, 0, 0])
    new = with_values(make_rows(store, pairs), fingerprint=["f"] * 3, title=["judged anew", "plain", "plain"], rank=[0, 1, 0])
    before, after = publish(store, old, {}, rules="r"), publish(store, new, {}, rules="q")
    assert {row["pair_id"]: row["why"] for row in diff_runs(store, CAMPAIGN, before, after).changes} == {
        pairs[0]: ["rules"],
        pairs[1]: ["rank"],
    }
    again = publish(store, with_values(new, title=["judged anew", "plain", "drawn again"]), {}, rules="q")
    assert [row["why"] for row in diff_runs(store, CAMPAIGN, after, again).changes] == [["made_again"]]


def test_pairs_that_come_and_go_and_rows_that_turn_bad_say_so(store: Storage):
    pairs = pair_ids(6)
    old = [make_rows(store, pairs[:4]), make_rows(store, pairs[4:5], status=REJECTED)]
    new = [
        make_rows(store, pairs[1:2]),
        make_rows(store, pairs[2:3], "x", status=REJECTED),
        make_rows(store, pairs[3:4], "x", status=FAILED),
        make_rows(store, pairs[4:5], "x"),
        make_rows(store, pairs[5:]),
    ]
    before = publish(store, pa.concat_tables(old), {})
    after = publish(store, pa.concat_tables(new), {pairs[2]: {"product_hash": "q"}, pairs[4]: {"history_hashes": ["c"]}})
    found = diff_runs(store, CAMPAIGN, before, after)
    assert {(row["kind"], row["pair_id"]): row["why"] for row in found.changes} == {
        ("withdrawn", pairs[0]): ["pair_gone"],
        ("withdrawn", pairs[2]): ["rejected", "product"],
        ("withdrawn", pairs[3]): ["failed"],
        ("added", pairs[4]): ["history"],
        ("added", pairs[5]): ["new_pair"],
    }
    assert (found.added, found.changed, found.withdrawn) == (2, 0, 3)
    assert found.why["withdrawn: rejected"] == found.why["withdrawn: product"] == 1


def test_without_lineage_the_public_part_says_what_it_can(store: Storage):
    """What 0.1 wrote, or who has no right on private/."""
    pairs = pair_ids(2)
    model = {"model_digest": ["m", "m"]}
    before = publish(store, with_values(make_rows(store, pairs), **model), settings="s")
    other_model = with_values(make_rows(store, pairs, "new"), model_digest=["m", "n"])
    after = publish(store, other_model, settings="s")
    causes = {row["pair_id"]: row["why"] for row in diff_runs(store, CAMPAIGN, before, after).changes}
    assert causes == {pairs[0]: ["unknown"], pairs[1]: ["model"]}
    for entry in list(store.entries(f"private/campaigns/{CAMPAIGN}/runs/{before}/")):
        store.delete(entry.key)
    assert f"run {before} has none in private/" in diff_runs(store, CAMPAIGN, before, after).note
    other = publish(store, with_values(make_rows(store, pairs, "newest"), model_digest=["m", "n"]), settings="t")
    assert {tuple(row["why"]) for row in diff_runs(store, CAMPAIGN, after, other).changes} == {("settings",)}


def test_who_may_not_read_private_is_told_why_causes_are_unknown(folder_store: Storage):
    class NoPrivate(WrappedStorage):
        def act(self, name: str, *arguments):
            if str(arguments[0]).startswith("private/"):
                raise StoreError(f"{arguments[0]}: AccessDenied")
            return super().act(name, *arguments)

    pairs = pair_ids(1)
    before = publish(folder_store, make_rows(folder_store, pairs), {})
    after = publish(folder_store, make_rows(folder_store, pairs, "new"), {pairs[0]: {"product_hash": "other"}})
    found = diff_runs(NoPrivate(folder_store), CAMPAIGN, before, after)
    assert found.why == {"changed: unknown": 1}
    assert "AccessDenied" in found.note


@pytest.mark.slow
def test_nights_of_a_shop_differ_by_what_was_changed_in_it(folder_store: Storage, tmp_path: Path):
    """Through catalog and plan: one product's title, then one user's clicks, then the campaign's seed."""
    shop = small_shop(tmp_path / "inputs")
    shop.pictures = True
    nights = [shop.night(folder_store)]
    shop.products["p3"]["title"] = "quite another title"
    nights.append(shop.night(folder_store, nights[-1]))
    shop.histories["u4"] = ["p9", "p10", "p11"]
    nights.append(shop.night(folder_store, nights[-1]))
    nights.append(shop.night(folder_store, nights[-1], campaign_seed=8))
    runs = [sealed(night) for night in nights]
    for before, after, causes in zip(runs, runs[1:], ({"product", "history"}, {"history"}, {"settings"}), strict=False):
        found = diff_runs(folder_store, CAMPAIGN, before, after, rows=100)
        assert {cause for row in found.changes for cause in row["why"]} == causes
        assert found.added == found.withdrawn == 0
    product = [row for row in diff_runs(folder_store, CAMPAIGN, *runs[:2], rows=100).changes if row["product_id"] == "p3"]
    assert all("product" in row["why"] for row in product)
    assert product


def sealed(night) -> str:
    """run.json of a night; its run's id."""
    journal, now = night.journal, utc_now()
    files, counts = compact(journal, journal.read_plan())
    about = {"campaign": CAMPAIGN, "run_id": journal.run_id, "resume_key": "x", "created_at": now, "updated_at": now}
    run = RunDocument(**about, state="COMPLETE", counts=counts, manifest=files)
    journal.storage.put(f"campaigns/{CAMPAIGN}/runs/{journal.run_id}/run.json", run.to_bytes())
    return journal.run_id


def test_the_command_prints_counts_examples_and_a_file_of_all(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture):
    pairs = pair_ids(30)
    before = publish(store, make_rows(store, pairs), {})
    after = publish(store, make_rows(store, pairs, "new"), {pair: {"model_digest": "other"} for pair in pairs})
    out = tmp_path / "changes.jsonl"
    assert main(["diff", store.uri, CAMPAIGN, before, after, "--json", "--rows", "5", "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["changed"], said["why"], len(said["changes"])) == (30, {"changed: model": 30}, 5)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["pair_id"] for row in written} == set(pairs)
    text = out.read_text() + json.dumps(said)
    assert not any(word in text for word in ("user_id", "history_hashes", "product_hash"))
    assert main(["diff", store.uri, CAMPAIGN, before, after]) == 0
    assert "model" in capsys.readouterr().out


def test_a_diff_that_cannot_be_made_leaves_no_file(folder_store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture):
    run = publish(folder_store, make_rows(folder_store, pair_ids(2)))
    with pytest.raises(ConsumerError, match="there is no such run"):
        diff_runs(folder_store, CAMPAIGN, run, "20200101000000-000000-00000000")
    other = publish(folder_store, make_rows(folder_store, pair_ids(2), "new"))
    for entry in list(folder_store.entries(f"campaigns/{CAMPAIGN}/runs/{other}/manifest/")):
        folder_store.delete(entry.key)
    assert main(["diff", folder_store.uri, CAMPAIGN, run, other, "--out", str(tmp_path / "out.jsonl")]) == 1
    assert "is gone; read latest.json again" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out.jsonl*"))
