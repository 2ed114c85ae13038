"""What each row of an evaluation scores, and what is left out and why."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.evaluations import context, rows_of, scored
from support.runs import CAMPAIGN

from adgen.creatives.reading import open_published
from adgen.creatives.stores import open_storage
from adgen.evaluation.results.rows import ROWS
from adgen.evaluation.results.summary import summarize
from adgen.evaluation.scores import names_of
from adgen.evaluation.scoring.creatives import ROW_SCORES, SCORED, UNPASTED_SCORES
from adgen.evaluation.titles.bleu import NUM_COUNTS
from adgen.on_ray.scoring import workers as scoring
from adgen.on_ray.scoring.sampling import journal_rows
from adgen.on_ray.scoring.workers import ScoreShard, packed, whole_parts

PICTURE_SCORES = names_of("picture")
PBS = {name for name in PICTURE_SCORES if name.startswith("pbs")}
NEED_A_NETWORK = PBS | {name for name in PICTURE_SCORES if name.startswith("background")} | {"clip_score"}


@pytest.fixture
def shop(references_shop: Path) -> Path:
    return references_shop


@pytest.fixture
def store(store_of_references: Path) -> Path:
    return store_of_references


def test_every_row_has_its_scores_or_says_why_not(evaluated):
    rows = rows_of(evaluated)
    assert len(rows) == 12
    assert sum(row["status"] == "failed" for row in rows) == 1
    for row in rows:
        there = {name for name in ROW_SCORES if row[name] is not None}
        if row["status"] == "failed":
            assert (row["left_out"], there) == (["failed_engine"], set())
            continue
        assert set(PICTURE_SCORES) - there == set(UNPASTED_SCORES)
        # The title is the first reference; the product was pasted; the background is the reference picture.
        assert row["bleu"] > 99
        assert row["product_iou"] > 0.9
        assert row["product_distance"] < 0.05
        assert row["pbs_reference"] > 0.9
        assert row["history_length"] == 4
        for network in ("pbs", "background"):
            margin = row[f"{network}_history"] - row[f"{network}_other_user_history"]
            assert row[f"{network}_history_margin"] == pytest.approx(margin)
            assert row[f"{network}_reference"] > row[f"{network}_history"]
        # The picture is the reference's own, and no copy of a click.
        assert row["background_reference"] > 0.99
        assert row["copied"] == row["reference_copied"] == 0
        assert len(row["bleu_counts"]) == NUM_COUNTS


@pytest.mark.slow
def test_a_creative_s_scores_do_not_depend_on_its_batch(evaluated, store, shop, encoder, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 2)
    for row, alone in zip(rows_of(evaluated), scored(store, shop, tmp_path / "out", encoder, **networks), strict=True):
        assert row["left_out"] == alone["left_out"]
        for name in ROW_SCORES:
            assert alone[name] == (None if row[name] is None else pytest.approx(row[name], abs=1e-4))


def test_without_networks_only_their_scores_are_missing(evaluated, store, shop, tmp_path):
    with_them, without = rows_of(evaluated), scored(store, shop, tmp_path / "out")
    for one, other in zip(with_them, without, strict=True):
        assert all(other[name] is None for name in NEED_A_NETWORK)
        assert {name: value for name, value in one.items() if name not in NEED_A_NETWORK} == {
            name: value for name, value in other.items() if name not in NEED_A_NETWORK
        }
    assert summarize(evaluated, 100).sets.keys() == {"user_diversity"}
    assert summarize(tmp_path / "out", 100).sets == {}


def test_clicked_pictures_without_a_cutout_are_named_and_the_others_compared(store, shop, networks, tmp_path):
    bad = Path(shutil.copytree(shop, tmp_path / "shop"))
    products = pq.read_table(bad / "products.parquet")
    rows = products.to_pylist()
    for row in rows[::2]:
        row["cutout"] = None
    pq.write_table(pa.Table.from_pylist(rows, products.schema), bad / "products.parquet")
    done = [row for row in scored(store, bad, tmp_path / "out", dinov2=networks["dinov2"]) if row["uri"]]
    named = [row for row in done if "unmasked_history_pictures" in row["left_out"]]
    assert named
    assert any(row["background_history"] is not None for row in named)
    for row in done:
        without_mask = rows[int(row["product_id"][-7:])]["cutout"] is None
        assert without_mask == (row["background_reference"] is None)
        assert not without_mask or {"unmasked_reference_picture", "product_no_cutout"} & {*row["left_out"]}


def test_bad_input_is_counted_and_named(store, shop, encoder, tmp_path):
    bad, kept = Path(shutil.copytree(shop, tmp_path / "shop")), Path(shutil.copytree(store, tmp_path / "store"))
    published = {row["pair_id"]: row for row in open_published(open_storage(str(kept)), CAMPAIGN).rows() if row["uri"]}
    gone, broken = list(published.values())[:2]
    (kept / gone["uri"]).unlink()
    (kept / broken["uri"]).write_bytes(b"no picture")
    table = pq.read_table(bad / "references.parquet")
    rows = table.to_pylist()
    rows[2]["titles"], rows[3]["titles"], rows[4]["image"] = [], [None, "  "], "images/nowhere.png"
    del rows[5]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), bad / "references.parquet")
    products = pq.read_table(bad / "products.parquet")
    keep = [product != rows[6]["product_id"] for product in products["product_id"].to_pylist()]
    pq.write_table(products.filter(pa.array(keep)), bad / "products.parquet")

    scored(kept, bad, tmp_path / "out", encoder)
    summary = summarize(tmp_path / "out", resamples=100)
    assert summary.rows == 12
    assert summary.by_status == {"failed": 1, "ok": 11}
    found = summary.left_out
    assert found["failed_engine"] == found["picture_missing"] == found["picture_unreadable"] == 1
    assert found["no_reference"] == 1
    assert found["empty_reference_titles"] == 2
    assert found["no_product"] == sum(row["product_id"] == rows[6]["product_id"] for row in published.values())
    assert found["reference_picture_missing_file"] <= 1
    assert "NaN" not in json.dumps(summary.as_dict(), allow_nan=False)


def test_a_shop_without_references_and_a_run_of_one_row(store, shop, tmp_path):
    alone = tmp_path / "shop"
    shutil.copytree(shop, alone)
    (alone / "references.parquet").unlink()
    rows = scored(store, alone, tmp_path / "out")
    assert all("no_reference" in row["left_out"] and row["bleu"] is None for row in rows if row["status"] == "ok")
    only = next(row for row in rows if row["status"] == "ok")
    (tmp_path / "one" / ROWS).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([only], SCORED), tmp_path / "one" / ROWS / "0.parquet")
    summary = summarize(tmp_path / "one", resamples=100)
    assert (summary.rows, summary.scores["product_iou"].users) == (1, 1)
    assert summary.scores["product_iou"].low is None
    assert "bleu" not in summary.scores
    json.dumps(summary.as_dict(), allow_nan=False)


def test_a_large_shard_is_scored_piece_by_piece(evaluated, store, shop, encoder, networks):
    """As rows that are carried come, a hundred thousand in a shard."""
    stage = ScoreShard(context(store, shop, encoder=encoder, **networks))
    parts = stage.journal.read_plan().parts
    items = whole_parts(parts, rows_an_item=3)
    assert [(item["index"], item["parts"], item["rows"]) for item in items] == [
        (0, [0], 3), (1, [0], 2), (2, [1], 3), (3, [1], 2), (4, [2], 2)
    ]  # fmt: skip
    rows = [row for item in items for row in pq.read_table(pa.BufferReader(stage(packed(item))["scores"])).to_pylist()]
    for one, other in zip(rows, rows_of(evaluated), strict=True):
        assert one["pair_id"] == other["pair_id"]
        assert [one[name] for name in ROW_SCORES] == pytest.approx([other[name] for name in ROW_SCORES], abs=1e-5)


def test_what_is_not_published_is_not_scored(store, shop, tmp_path):
    """A rejected title is nobody's: the gate before publishing does not count it either."""
    stage = ScoreShard(context(store, shop))
    [row] = journal_rows(stage.journal, 0, [1])
    rejected = row | {"status": "rejected", "reason": "forbidden_words", "uri": None, "sha256": None}
    [(scores, _)] = stage.score([rejected])
    assert scores["left_out"] == ["rejected_forbidden_words"]
    assert all(scores.get(name) is None for name in ROW_SCORES)
