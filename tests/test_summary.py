"""What the rows of an evaluation say together, and two evaluations compared."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.evaluations import do_shards, plan_run, rows_of, scored

from adgen.creatives.publish import finish
from adgen.creatives.stores import open_storage
from adgen.errors import SettingsError
from adgen.evaluation.report.page import render_page
from adgen.evaluation.results.comparison import compare
from adgen.evaluation.results.earlier import distances_of_both, scored_by_others
from adgen.evaluation.results.pictures import StoredPictures
from adgen.evaluation.results.rows import ROWS
from adgen.evaluation.results.set_scores import SetScore
from adgen.evaluation.results.summary import summarize
from adgen.evaluation.scoring.creatives import ROW_SCORES, SCORED
from adgen.evaluation.scoring.networks import NamedNetwork

PBS = {name for name in ROW_SCORES if name.startswith("pbs")}


@pytest.fixture
def shop(references_shop: Path) -> Path:
    return references_shop


@pytest.fixture
def store(store_of_references: Path) -> Path:
    return store_of_references


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


def test_an_evaluation_of_nothing_says_so(tmp_path):
    with pytest.raises(SettingsError, match="no evaluation lies there"):
        summarize(tmp_path)


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
    assert distances_of_both(mine, sets, record) == {"fid": (1.0, 2.0)}
    record["networks"]["distance"] = {"name": "dinov2", "digest": "f"}
    assert distances_of_both(mine, sets, record) == {}
