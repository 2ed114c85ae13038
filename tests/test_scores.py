"""The one table of scores: every score comes from it, and one more entry is one more score everywhere."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import added_score

from adgen.evaluation.pictures.distances import SetDistance
from adgen.evaluation.report.labels import label, meaning
from adgen.evaluation.results.diversity import SEED_DIVERSITY, USER_DIVERSITY
from adgen.evaluation.results.earlier import read_record
from adgen.evaluation.results.rows import ROWS, joined_by_user, read_rows, with_old_columns
from adgen.evaluation.scores import NETWORKS, SCORES, find_score, names_of, old_names, sheet_scores
from adgen.evaluation.scoring.creatives import CORPUS_BLEU, ROW_SCORES, SCORED
from adgen.on_ray.refresh.gate import TEMPLATE, THRESHOLDS

ROOT = Path(__file__).parents[1]
NAMES = [score.name for score in SCORES]
NAMED_ONCE = {"corpus_bleu", "seed_diversity", "user_diversity", "unpasted_product_iou"}  # constants of their own


def test_rows_summary_gate_and_distances_know_only_scores_of_the_table():
    assert SCORED.names[-len(ROW_SCORES) :] == list(names_of("title", "picture"))
    assert names_of("all titles") == (CORPUS_BLEU,)
    assert {SEED_DIVERSITY, USER_DIVERSITY} <= set(names_of("set"))
    assert {threshold.score for threshold in THRESHOLDS} <= {*NAMES, TEMPLATE}
    assert set(sheet_scores()) <= set(ROW_SCORES)
    assert len(set(NAMES)) == len(NAMES)
    import torch

    for network, frechet in (("inception", "fid"), ("dinov2", "frechet_dinov2")):
        distance = SetDistance(network, 4)
        for real in (False, True):
            distance.add(torch.rand(8, 4), real=real)
        found = distance.compute()
        assert frechet in found
        assert all("distance" in find_score(name).needs and label(name) != name for name in found)


@pytest.mark.parametrize("score", SCORES, ids=NAMES)
def test_an_entry_is_whole(score):
    assert label(score.name) == score.label
    assert meaning(score.name)
    assert score.range[0] < score.range[1]
    assert set(score.needs) <= {"reference", "product", "history", "other_users", "unpasted", *NETWORKS}


@pytest.mark.parametrize("folder", ["results", "report"])
def test_nothing_else_lists_scores(folder):
    for file in (ROOT / "adgen" / "evaluation" / folder).glob("*.py"):
        texts = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
        assert not texts & (set(NAMES) - NAMED_ONCE), file


@pytest.mark.slow
def test_one_more_entry_is_a_score_of_rows_summary_comparison_and_report(store_of_references, references_shop, tmp_path):
    command = [sys.executable, "-W", "ignore", added_score.__file__, str(store_of_references), str(references_shop), str(tmp_path)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": paths})
    rows = [row for part in (tmp_path / "second" / ROWS).iterdir() for row in pq.read_table(part).to_pylist()]
    scored = [row for row in rows if row["status"] == "ok"]
    assert len(scored) == 11
    assert all(row["title_letters"] == sum(map(str.isalpha, row["title"])) and 0 < row["brightness"] < 1 for row in scored)
    assert all(row["title_letters"] is row["brightness"] is None for row in rows if row["status"] != "ok")
    record = json.loads((tmp_path / "second" / "summary.json").read_text())
    page = (tmp_path / "second" / "report.html").read_text()
    for name in ("title_letters", "brightness"):
        assert record["scores"][name]["rows"] == 11
        assert record["against"]["differences"][name]["mean"] == 0
    assert "letters in the title" in page
    assert "Lowest and highest: brightness of the picture" in page


# -- names before 0.2.0 --------------------------------------------------------------------------------------------------


def test_renamed_scores_are_written_under_both_names_and_read_under_the_old_one(evaluated, tmp_path):
    part = next((evaluated / ROWS).iterdir())
    both = with_old_columns(pq.read_table(part))
    new_only, old_only = tmp_path / "new", tmp_path / "old"
    for folder, rows in ((new_only, both), (old_only, both.drop_columns(list(old_names())))):
        (folder / ROWS).mkdir(parents=True)
        pq.write_table(rows, folder / ROWS / "0.parquet")
    for new, old in old_names().items():
        assert both[new] == both[old]
        assert find_score(old) == find_score(new)
        [read] = read_rows(old_only, ["pair_id", new])
        assert read[new].to_pylist() == both[new].to_pylist()
        [joined] = joined_by_user(new_only, old_only, f"here.{new} AS mine, there.{new} AS theirs")
        assert joined["mine"].to_pylist() == joined["theirs"].to_pylist()
        assert joined["mine"].null_count < len(both)
    (old_only / "summary.json").write_text("{}")
    assert read_record(old_only) == {}
