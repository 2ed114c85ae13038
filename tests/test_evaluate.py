"""An evaluation of a run: what rows score, what is left out and why, the summary, the report, and the whole on a real Ray."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from support.evaluations import do_shards, draw_shop, plan_run, save_small_encoder, score_here
from support.models import save_small_model
from support.networks import save_clip, save_dinov2
from support.progress import Silent
from support.runs import CAMPAIGN

from adgen.creatives.journal import Journal
from adgen.creatives.publish import finish
from adgen.creatives.reading import open_published
from adgen.creatives.storage import S3Access
from adgen.creatives.stores import open_storage
from adgen.errors import SettingsError
from adgen.evaluation.report.labels import UNCERTAIN
from adgen.evaluation.report.page import render_page
from adgen.evaluation.report.tables import print_scores
from adgen.evaluation.results.comparison import compare
from adgen.evaluation.results.earlier import distances_beside, scored_by_others
from adgen.evaluation.results.features import FEATURES
from adgen.evaluation.results.pictures import StoredPictures
from adgen.evaluation.results.rows import ROWS
from adgen.evaluation.results.set_scores import SetScore
from adgen.evaluation.results.summary import summarize
from adgen.evaluation.scores import names_of
from adgen.evaluation.scoring.creatives import ROW_SCORES, SCORED, UNPASTED_SCORES
from adgen.evaluation.scoring.networks import NamedNetwork, NetworkPaths
from adgen.evaluation.titles.bleu import NUM_COUNTS
from adgen.on_ray.evaluation import job as evaluation
from adgen.on_ray.evaluation import model as model_evaluation
from adgen.on_ray.evaluation.job import ScoredRun, evaluate_run, score_runs
from adgen.on_ray.evaluation.model import evaluate_model, with_pairs
from adgen.on_ray.evaluation.settings import ModelEvaluationSettings, RunEvaluationSettings, ScoringSettings
from adgen.on_ray.evaluation.unpasted import KEEPING_UNPASTED, FinishKeepingUnpasted
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.payload import lossless
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.scoring import workers as scoring
from adgen.on_ray.scoring.sampling import journal_rows, read_panel
from adgen.on_ray.scoring.unpasted_pictures import read_unpasted
from adgen.on_ray.scoring.workers import ScoreShard, ScoringContext, packed, whole_parts
from adgen.shop.inputs.tables import open_inputs

PICTURE_SCORES = names_of("picture")
PBS = {name for name in PICTURE_SCORES if name.startswith("pbs")}
NEED_A_NETWORK = PBS | {name for name in PICTURE_SCORES if name.startswith("background")} | {"clip_score"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return draw_shop(tmp_path_factory.mktemp("inputs") / "shop")


@pytest.fixture(scope="module")
def store(shop: Path, tmp_path_factory) -> Path:
    """A published run of twelve creatives, one of them failed."""
    store = tmp_path_factory.mktemp("run") / "store"
    run = plan_run(store, shop)
    do_shards(run, shop)
    finish(run)
    return store


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return save_small_encoder(tmp_path_factory.mktemp("encoder") / "pbs")


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, Path]:
    """The others: a DINOv2 for backgrounds and for distances, a CLIP."""
    folder = tmp_path_factory.mktemp("networks")
    dinov2 = save_dinov2(folder / "dinov2")
    return {"dinov2": dinov2, "fid": dinov2, "clip": save_clip(folder / "clip")}


@pytest.fixture(scope="module")
def evaluated(store: Path, shop: Path, encoder: Path, networks: dict[str, Path], tmp_path_factory) -> Path:
    """The folder of its evaluation."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    scored(store, shop, out, encoder, **networks)
    return out


def rows_of(out: Path) -> list[dict]:
    return [row for part in sorted((out / ROWS).iterdir()) for row in pq.read_table(part).to_pylist()]


def context(store: Path, shop: Path, **networks: Path | None) -> ScoringContext:
    inputs = open_inputs(str(shop), ["products"], optional=["references"])
    run = open_published(open_storage(str(store)), CAMPAIGN).run
    run_id, networks = run.run_id, NetworkPaths(**networks)
    panel = read_panel(Journal(open_storage(str(store)), CAMPAIGN, run_id))
    return ScoringContext(str(store), S3Access(), CAMPAIGN, run_id, inputs, networks, "cpu", panel)


def scored(store: Path, shop: Path, out: Path, encoder: Path | None = None, **networks: Path | None) -> list[dict]:
    """The rows of an evaluation, which then lies in `out`."""
    stage = ScoreShard(context(store, shop, encoder=encoder, **networks))
    for folder in (ROWS, FEATURES):
        (out / folder).mkdir(parents=True)
    rows = []
    for item in whole_parts(stage.journal.read_plan().parts):
        done = stage(packed(item))
        assert done.keys() == {"index", "scores", "features"}, done
        table = pq.read_table(pa.BufferReader(done["scores"]))
        pq.write_table(table, out / ROWS / f"{item['index']:06d}.parquet")
        (out / FEATURES / f"{item['index']:06d}.parquet").write_bytes(done["features"])
        rows += table.to_pylist()
    return rows


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


def rewritten(folder: Path, table: str, change) -> Path:
    """`change` gets the table's rows, and returns those that are to be there; ids may be missing."""
    there = pq.read_table(folder / f"{table}.parquet")
    schema = pa.schema([field.with_nullable(True) for field in there.schema])
    pq.write_table(pa.Table.from_pylist(change(there.to_pylist()), schema), folder / f"{table}.parquet")
    return folder


def test_what_is_listed_twice_is_named_and_the_first_is_taken(here, store, shop, tmp_path):
    def twice(rows: list[dict]) -> list[dict]:
        others = [row | {"titles": ["another title"], "image": "images/nowhere.png"} for row in rows[3:5]]
        nobody = [rows[0] | {"user_id": None}, rows[0] | {"product_id": None}, rows[0] | {"titles": ["\u3000"], "image": ""}]
        return [*rows, *others, *others[:1], *nobody]

    bad = rewritten(Path(shutil.copytree(shop, tmp_path / "shop")), "references", twice)
    rewritten(bad, "products", lambda rows: [*rows, rows[0] | {"title": "another"}])
    product = pq.read_table(bad / "products.parquet")["product_id"][0].as_py()
    record = evaluate_run(run_settings(store, bad, tmp_path / "bad"), Silent())
    assert record["references"] == {"rows": 18, "without_ids": 2, "duplicates": 4, "with_titles": 17, "with_picture": 17}
    assert record["reference_problems"] == {"duplicates": 4, "without_ids": 2, "without_titles": 1, "without_picture": 1}
    good = {row["pair_id"]: row for row in rows_of_run(store, shop, tmp_path / "good")}
    named = [row for row in rows_of(tmp_path / "bad") if "duplicate_reference" in row["left_out"]]
    assert record["left_out"]["duplicate_reference"] == len(named) == 3  # the last is of the row that failed
    for row in rows_of(tmp_path / "bad"):
        assert {name: row[name] for name in ROW_SCORES} == {name: good[row["pair_id"]][name] for name in ROW_SCORES}
        assert ("duplicate_product" in row["left_out"]) == (row["product_id"] == product)
    page = (tmp_path / "bad" / "report.html").read_text()
    assert "Of 18 rows of the table of references: 4 duplicates, 2 without ids, 1 without titles, 1 without picture." in page
    assert "duplicate reference" in page


def test_a_shop_without_references_has_none_to_count(here, store, shop, tmp_path):
    alone = Path(shutil.copytree(shop, tmp_path / "shop"))
    (alone / "references.parquet").unlink()
    record = evaluate_run(run_settings(store, alone, tmp_path / "out"), Silent())
    assert (record["references"], record["reference_problems"]) == (None, {})
    assert record["left_out"]["no_reference"] == 11


def rows_of_run(store: Path, shop: Path, out: Path) -> list[dict]:
    evaluate_run(run_settings(store, shop, out), Silent())
    return rows_of(out)


def test_scores_that_cannot_be_sure_are_named_with_the_reason(here, store, shop, encoder, networks, tmp_path, evaluated):
    record = evaluate_run(run_settings(store, shop, tmp_path / "out", encoder=encoder, **networks), Silent())
    alike = {name for name in ROW_SCORES if len({row[name] for row in rows_of(evaluated) if row["status"] == "ok"}) == 1}
    alike &= record["scores"].keys()
    assert alike
    assert alike <= set(record["uncertain"]["no_variance"])
    for name, each in record["scores"].items():
        assert (each["low"] is None) == any(name in names for names in record["uncertain"].values())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "the same everywhere, so without an interval" in page


@pytest.mark.parametrize(("rows", "reason"), [(1, "one_row"), (2, "one_user")])
def test_one_row_and_one_user_are_named_and_nothing_is_nan(here, shop, encoder, networks, tmp_path, rows, reason, capsys):
    """With every network: a distance of fewer than two pictures is not reported either."""

    def one_user(references: list[dict]) -> list[dict]:
        users = Counter(row["user_id"] for row in references)
        return [row for row in references if users[row["user_id"]] >= rows and row["user_id"] == users.most_common(1)[0][0]][:rows]

    small = rewritten(Path(shutil.copytree(shop, tmp_path / "shop")), "references", one_user)
    run = plan_run(tmp_path / "store", small)
    do_shards(run, small, failed=0)
    finish(run)
    record = evaluate_run(run_settings(tmp_path / "store", small, tmp_path / "out", encoder=encoder, **networks), Silent())
    assert record["rows"] == rows
    assert set(record["uncertain"][reason]) >= {"bleu", "corpus_bleu", "product_iou", "pbs_reference", "clip_score"}
    assert record["uncertain"].get("too_few_pictures", []) == (["distance"] if rows == 1 else [])
    assert all(each["low"] is each["high"] is None for each in record["scores"].values())
    json.dumps(record, allow_nan=False)
    page = re.sub(r"base64,[^\"]*", "", (tmp_path / "out" / "report.html").read_text()).lower()
    assert "nan" not in re.findall(r"[a-z]+", page)
    print_scores(Console(width=200), record)
    told = capsys.readouterr().out.replace("\n", " ")
    assert UNCERTAIN[reason] in told


def test_nearly_equal_values_and_few_users_make_a_summary_too(evaluated, tmp_path):
    """A histogram of 30 bins cannot be cut where values differ by rounding, and Student's t reaches beyond a cosine."""
    first, second = [row for row in rows_of(evaluated) if row["status"] == "ok"][:2]
    rows = [first | {"user_key": "a", "rouge_l": 0.4, "pbs_reference": 0.99}]
    rows += [second | {"user_key": "b", "rouge_l": float(np.nextafter(0.4, 0)), "pbs_reference": -0.4}]
    rows += [first | {"user_key": user, "rouge_l": 0.4, "pbs_reference": 0.98} for user in "cd"]
    (tmp_path / ROWS).mkdir()
    pq.write_table(pa.Table.from_pylist(rows, SCORED), tmp_path / ROWS / "0.parquet")
    summary = summarize(tmp_path, resamples=100)
    assert summary.histograms["rouge_l"].counts.sum() == 4
    assert summary.scores["rouge_l"].low is None
    assert not summary.histograms["rouge_l"].varies
    page = render_page({"campaign": "c", "run_id": "r", "model_digest": None}, summary, StoredPictures(()))
    assert re.search("The same for all creatives: [^<]*ROUGE-L 0.4", page)
    found = summary.scores["pbs_reference"]
    assert -1 <= found.low < found.mean < found.high == 1


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


def test_the_summary_is_that_of_the_rows_however_they_are_cut(evaluated, tmp_path):
    rows = rows_of(evaluated)
    (tmp_path / "whole" / ROWS).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows[::-1], SCORED), tmp_path / "whole" / ROWS / "0.parquet")
    summary, whole = summarize(evaluated), summarize(tmp_path / "whole")
    titles = summary.scores.pop("corpus_bleu")
    assert titles == whole.scores["corpus_bleu"]
    assert (titles.mean, titles.rows, titles.users) == (pytest.approx(100), 11, summary.scores["bleu"].users)
    for name, estimate in summary.scores.items():
        values = [row[name] for row in rows if row[name] is not None]
        assert (estimate.mean, estimate.rows) == (pytest.approx(np.mean(values)), len(values))
        assert whole.scores[name] == pytest.approx(estimate)
        assert estimate.users == len({row["user_key"] for row in rows if row[name] is not None})
        assert summary.histograms[name].counts.sum() == len(values)
    for groups in summary.groups.values():
        assert sum(scores["width"].rows for scores in groups.values() if scores) == summary.scores["width"].rows == 11
    margins = [row["pbs_history_margin"] for row in rows if row["pbs_history_margin"] is not None]
    assert [row["value"] for row in summary.worst["pbs_history_margin"]] == sorted(margins)[:8]
    assert [row["value"] for row in summary.best["pbs_history_margin"]] == sorted(margins, reverse=True)[:8]


def test_two_evaluations_are_compared_pair_by_pair(evaluated, store, shop, tmp_path):
    other = tmp_path / "other-store"
    run = plan_run(other, shop)
    do_shards(run, shop, title="gibberish zzz qqq", failed=2)
    finish(run)
    here, there = evaluated, tmp_path / "there"
    scored(other, shop, there)
    found = compare(here, there, resamples=500)
    bleu, product = found.differences["bleu"].difference, found.differences["product_iou"].difference
    assert bleu.mean > 90
    assert bleu.p_value == 2.0 ** (1 - bleu.users)  # all the same difference, of how many users decides
    assert list(found.differences).index("corpus_bleu") == list(found.differences).index("bleu") + 1
    assert found.differences["corpus_bleu"].here == pytest.approx(100)
    assert found.differences["corpus_bleu"].difference.p_value <= 2.0 ** (1 - bleu.users)
    assert found.differences["rouge_l"].difference.is_significant == (bleu.users > 5)
    assert found.differences["width"].difference.is_significant
    assert product.mean == pytest.approx(0, abs=1e-3)
    assert not product.is_significant
    assert compare(there, here, resamples=500).differences["bleu"].difference.mean == -bleu.mean
    next(iter(sorted((there / ROWS).glob("*.parquet"))[1:])).unlink()
    fewer = compare(here, there, resamples=500)
    assert (fewer.pairs, fewer.only_here, fewer.only_there) == (7, 5, 0)
    assert fewer.differences["bleu"].difference.rows == 5
    with pytest.raises(SettingsError, match="no evaluation lies there"):
        compare(here, tmp_path / "nowhere")

    found.differences["bleu"] = found.differences["bleu"]._replace(
        difference=bleu._replace(p_value=0.01)
    )  # as it would be of more users
    record = {"campaign": "<b>", "run_id": "r", "model_digest": None}
    pictures = [StoredPictures([open_storage(str(each))]) for each in (store, other)]
    page = render_page(record, summarize(here, 100), *pictures[:1], found, *pictures[1:])
    assert "<b></h1>" not in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()
    assert 'class="better"' in page
    assert page.count('<img src="data:image/webp') >= 8
    assert not re.search(r"(src|href)=.(?!data:)", page)


def test_the_pairs_of_a_model_are_those_with_a_reference(shop, tmp_path):
    inputs = Path(shutil.copytree(shop, tmp_path / "shop"))
    table = pq.read_table(inputs / "references.parquet")
    rows = table.to_pylist()
    nobody = pa.schema([field.with_nullable(True) for field in table.schema])
    strange = [rows[0], rows[0] | {"user_id": None}, rows[0] | {"product_id": None}]
    pq.write_table(pa.Table.from_pylist(rows + strange, nobody), inputs / "references.parquet")
    opened = open_inputs(str(inputs), ("products", "histories", "references"))
    made = with_pairs(opened, tmp_path / "out" / "private")
    pairs = {(row["user_id"], row["product_id"]) for row in made["pairs"].reader().read_all().to_pylist()}
    assert pairs == {(row["user_id"], row["product_id"]) for row in rows}
    assert made["pairs"].num_rows == len(pairs) == 12
    assert made["products"] is opened["products"]
    assert with_pairs(opened, tmp_path / "out" / "private").stamps == made.stamps  # or no run would be resumed


def test_an_evaluation_of_nothing_says_so(tmp_path):
    with pytest.raises(SettingsError, match="no evaluation lies there"):
        summarize(tmp_path)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(evaluation, "score", score_here)
    monkeypatch.setattr(evaluation, "cluster_device", lambda device: "cpu")


def run_settings(store: Path, shop: Path, out: Path, **given) -> RunEvaluationSettings:
    return RunEvaluationSettings(store=str(store), campaign=CAMPAIGN, inputs=str(shop), out=str(out), resamples=100, **given)


def test_a_run_is_evaluated_with_all_networks_and_against_another(here, store, shop, encoder, networks, tmp_path):
    first = evaluate_run(run_settings(store, shop, tmp_path / "first", encoder=encoder, **networks), Silent())
    assert first["networks"]["background"]["name"] == "DINOv2 dinov2"
    assert first["not_measured"] == []
    assert first["scores"]["clip_score"]["rows"] == first["scores"]["background_reference"]["rows"] == 11
    assert first["scores"]["corpus_bleu"]["mean"] == pytest.approx(100)
    assert list(first["scores"]).index("corpus_bleu") == list(first["scores"]).index("bleu") + 1
    assert first["sets"]["user_diversity"]["of"]["products"] >= 1
    assert first["sets"]["frechet_dinov2"]["of"] == {"creatives": 11, "references": 11}
    assert first["sets"]["kid_dinov2"]["value"] < first["sets"]["frechet_dinov2"]["value"]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == [
        "diversity.parquet",
        "identity.json",
        "report.html",
        "rows",
        "summary.json",
    ]
    assert json.loads((tmp_path / "first" / "summary.json").read_text()) == first

    networks["dinov2"] = save_dinov2(tmp_path / "other-dinov2", seed=1)
    second = evaluate_run(
        run_settings(store, shop, tmp_path / "second", encoder=encoder, against=tmp_path / "first", **networks), Silent()
    )
    against = second["against"]
    theirs = {name for name in ROW_SCORES if name.startswith("background_")} | {"seed_diversity", "user_diversity"}
    assert set(against["not_compared"]) == theirs
    assert all(each["here"] == each["there"] and not each["significant"] for each in against["differences"].values())
    assert {"frechet_dinov2", "kid_dinov2"} == against["sets"].keys()
    assert "user_diversity" not in against["differences"], "another DINOv2 scored there"
    page = (tmp_path / "second" / "report.html").read_text()
    for text in ("Of all creatives together", "diversity between users", "By locale", "Not compared", "BLEU of all titles"):
        assert text in page
    (tmp_path / "first" / "summary.json").unlink()
    with pytest.raises(SettingsError, match="not finished"):
        evaluate_run(run_settings(store, shop, tmp_path / "third", against=tmp_path / "first"), Silent())
    assert not (tmp_path / "third").exists()


def test_only_what_other_networks_scored_is_not_compared():
    pbs, clip, distance = NamedNetwork("PBS encoder", "a"), NamedNetwork("CLIP", "c"), NamedNetwork("dinov2", "d")
    mine = {"pbs": pbs, "background": None, "clip": clip, "distance": distance}
    theirs = {"pbs": {"name": "PBS encoder", "digest": "b"}, "background": {"name": "DINOv2", "digest": "e"}, "clip": None}
    assert scored_by_others(mine, {"networks": theirs | {"distance": distance._asdict()}}) == [*sorted(PBS, key=ROW_SCORES.index)]
    assert scored_by_others(mine, {"networks": {}}) == [], "what no network scored there is not there"
    assert set(scored_by_others(mine, {})) == PBS | {"clip_score"}, "of another version"
    sets = {"fid": SetScore(1.0, None, None, {}), "user_diversity": SetScore(0.5, None, None, {})}
    moved = {"distance": {"name": "the same weights under another name", "digest": "d"}}
    record = {"sets": {"fid": {"value": 2.0}, "user_diversity": {"value": 0.4}}, "networks": moved}
    assert distances_beside(mine, sets, record) == {"fid": (1.0, 2.0)}
    record["networks"]["distance"] = {"name": "dinov2", "digest": "f"}
    assert distances_beside(mine, sets, record) == {}


def test_scores_by_another_panel_of_users_are_not_compared(here, store, shop, encoder, tmp_path):
    """A panel decides the scores of all rows together: of another one, unchanged creatives would change significantly."""
    first = evaluate_run(run_settings(store, shop, tmp_path / "first", encoder=encoder), Silent())
    beside = {"encoder": encoder, "against": tmp_path / "first"}
    against = evaluate_run(run_settings(store, shop, tmp_path / "same", **beside), Silent())["against"]
    assert "pbs_history_margin" in against["differences"]
    (tmp_path / "first" / "summary.json").write_text(json.dumps(first | {"panel": "another"}))
    against = evaluate_run(run_settings(store, shop, tmp_path / "other", **beside), Silent())["against"]
    assert {"pbs_other_user_history", "pbs_history_margin"} <= set(against["not_compared"])
    assert "pbs_history_margin" not in against["differences"]
    assert "pbs_history" in against["differences"]


def test_an_evaluation_of_another_version_is_refused_before_any_work(here, store, shop, tmp_path):
    evaluate_run(run_settings(store, shop, tmp_path / "old"), Silent())
    for part in (tmp_path / "old" / ROWS).iterdir():
        pq.write_table(pq.read_table(part).drop_columns(["clip_score"]), part)
    with pytest.raises(SettingsError, match="column clip_score is missing"):
        evaluate_run(run_settings(store, shop, tmp_path / "new", against=tmp_path / "old"), Silent())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("setting", ["encoder", "dinov2", "adapter", "fid", "clip"])
def test_missing_weights_stop_an_evaluation_before_any_work(here, store, shop, tmp_path, setting):
    settings = run_settings(store, shop, tmp_path / "out", **{setting: tmp_path / "nowhere"})
    with pytest.raises(SettingsError, match=f"{setting}: .*nowhere: there is no such"):
        evaluate_run(settings, Silent())
    (tmp_path / "nowhere").mkdir()
    lacking = "is missing|no such file|must lie there|not an encoder|not a model directory"
    with pytest.raises(SettingsError, match=rf"^{setting}: .*({lacking})"):
        evaluate_run(settings, Silent())
    assert not (tmp_path / "out").exists()


def test_what_the_model_painted_is_scored_and_what_was_pasted(here, shop, tmp_path):
    run = plan_run(tmp_path / "store", shop)
    do_shards(run, shop, painted=True, failed=0)
    finish(run)
    reader = open_published(open_storage(str(tmp_path / "store")), CAMPAIGN)
    asked = ScoringSettings(inputs=str(shop), resamples=100)
    record = score_runs(asked, [ScoredRun(str(tmp_path / "store"), reader)], tmp_path / "out", Silent(), has_unpasted=True)
    for row in rows_of(tmp_path / "out"):
        assert row["product_iou"] > 0.9
    shown = sorted(row["unpasted_product_iou"] for row in rows_of(tmp_path / "out"))
    assert len(shown) == 12
    assert shown[6] > 0.9, "every second one shows the product where it should be"
    assert np.mean(shown[:6]) < 0.9
    assert record["scores"]["unpasted_product_distance"]["mean"] > record["scores"]["product_distance"]["mean"]
    key = next((tmp_path / "store" / "private").rglob("unpasted/*/*/*.png"))
    key.unlink()
    again = score_runs(asked, [ScoredRun(str(tmp_path / "store"), reader)], tmp_path / "again", Silent(), has_unpasted=True)
    assert again["left_out"]["no_unpasted_picture"] == 1
    assert again["scores"]["unpasted_product_iou"]["rows"] == 11


@pytest.fixture
def made(monkeypatch, shop) -> list[int]:
    """Seeds of the runs that were asked for. They are made without a model."""
    seeds = []

    def refresh(settings, progress, stages, inputs):
        assert stages is KEEPING_UNPASTED
        assert inputs["pairs"].num_rows == 12
        seeds.append(settings.plan.campaign_seed)
        run = plan_run(Path(settings.store), shop)
        do_shards(run, shop, painted=True, seed=settings.plan.campaign_seed)
        finish(run)
        return SimpleNamespace(run_id=run.run_id)

    monkeypatch.setattr(model_evaluation, "refresh", refresh)
    monkeypatch.setattr(model_evaluation, "CAMPAIGN", CAMPAIGN)
    return seeds


def test_seeds_are_further_creatives_of_the_same_pairs(here, made, shop, encoder, networks, tmp_path):
    out = tmp_path / "out"
    asked = ModelEvaluationSettings(inputs=str(shop), model=tmp_path, encoder=encoder, out=out, seeds=3, resamples=100, **networks)
    record = evaluate_model(asked, Silent())
    assert made == [0, 1, 2]
    rows = rows_of(out)
    assert sorted(row["variant"] for row in rows) == [0] * 12 + [1] * 12 + [2] * 12
    assert len({row["pair_id"] for row in rows}) == 12
    assert record["sets"]["seed_diversity"]["of"] == {"pairs": 11, "users": record["scores"]["bleu"]["users"]}
    assert record["sets"]["seed_diversity"]["value"] > 0
    assert record["sets"]["frechet_dinov2"]["of"] == {"creatives": 33, "references": 11}, "a reference counts once"
    assert record["scores"]["unpasted_product_iou"]["rows"] == record["scores"]["product_iou"]["rows"] == 33
    assert [run["store"] for run in record["runs"]] == [str(out / name) for name in ("store", "store-seed-1", "store-seed-2")]
    page = (out / "report.html").read_text()
    assert "diversity between seeds" in page
    assert "painted product (IoU)" in page
    assert 'class="gap"' not in page, "each seed's pictures are found in its own store"
    assert page.count('alt="before the product was pasted"') == 16


def test_a_network_that_is_missing_is_named_before_anything_is_made(here, made, shop, tmp_path):
    asked = ModelEvaluationSettings(inputs=str(shop), model=tmp_path, out=tmp_path / "out", clip=tmp_path / "nowhere")
    with pytest.raises(SettingsError, match=r"clip: .*nowhere"):
        evaluate_model(asked, Silent())
    assert made == []


def test_finishing_keeps_what_was_painted(shop, tmp_path):
    picture = lossless(np.asarray(Image.new("RGB", (64, 64), "red")))
    product = pq.read_table(shop / "products.parquet").to_pylist()[0]
    ids = {"pair_id": "ab" * 32, "fingerprint": "cd" * 32, "product_id": product["product_id"], "product_title": product["title"]}
    pair = product | ids | {"title": product["title"], "picture": picture, "channel": None}
    settings = RefreshSettings(store=str(tmp_path), campaign=CAMPAIGN)
    stage = FinishKeepingUnpasted(Context(settings, "20260101000000-000000-00000000", "", ""))
    made = stage.creative(pair, {product["product_id"]: (shop / product["cutout"]).read_bytes()})
    assert made.picture.data != picture
    assert read_unpasted(stage.journal.storage, CAMPAIGN, pair) == picture
    assert read_unpasted(stage.journal.storage, CAMPAIGN, pair | {"fingerprint": "ef" * 32}) is None
    assert read_unpasted(stage.journal.storage, CAMPAIGN, pair | {"fingerprint": None}) is None


def test_a_model_is_evaluated_on_the_pairs_with_a_reference(ray_cluster, shop, encoder, tmp_path):
    save_small_model(tmp_path / "model")
    out = tmp_path / "out"
    of_model = {"model": tmp_path / "model", "adapter": tmp_path / "model", "sampling": {"max_title_tokens": 8}}
    asked = ModelEvaluationSettings(inputs=str(shop), encoder=encoder, out=out, limit=5, seeds=2, **of_model)
    record = evaluate_model(asked, Silent())
    assert record["rows"] == 10
    assert record["by_status"] == {"ok": 10}  # no gate keeps a creative of the model's back
    assert record["scores"]["bleu"]["rows"] == record["scores"]["pbs_reference"]["rows"] == 10
    assert record["scores"]["unpasted_product_iou"]["rows"] == record["scores"]["product_iou"]["rows"] == 10
    assert record["sets"]["seed_diversity"]["of"]["pairs"] == 5
    rows = rows_of(out)
    assert sorted(row["variant"] for row in rows) == [0] * 5 + [1] * 5
    assert len({row["pair_id"] for row in rows}) == 5
    assert len({row["uri"] for row in rows}) == 10
    assert "no_reference" not in record["left_out"]
    assert (out / "report.html").exists()
    users = pq.read_table(shop / "references.parquet")["user_id"].unique().to_pylist()
    tables = str([rows_of(out), pq.read_table(out / "diversity.parquet").to_pylist()])
    for text in [tables, *((out / name).read_text() for name in ("report.html", "summary.json"))]:
        assert not any(user in text for user in users)

    # Stopped while it was scored, it goes on with the creatives that are made.
    (out / "summary.json").unlink()
    sorted((out / ROWS).iterdir())[0].unlink()
    again = evaluate_model(asked, Silent())
    assert again["parts"] == {"found": 1, "scored": 1}
    assert (again["run_id"], again["scores"]["bleu"]) == (record["run_id"], record["scores"]["bleu"])
