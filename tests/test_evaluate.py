"""A run evaluated: record, folder and report, alone and against another evaluation."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.evaluations import do_shards, plan_run, rewritten, rows_of, run_settings, score_here
from support.networks import save_dinov2
from support.progress import Silent

from adgen.creatives.publish import finish
from adgen.errors import SettingsError
from adgen.evaluation.report.labels import UNCERTAIN
from adgen.evaluation.report.tables import print_scores
from adgen.evaluation.results.rows import ROWS
from adgen.evaluation.scoring import networks as scoring_networks
from adgen.evaluation.scoring.creatives import ROW_SCORES
from adgen.on_ray.evaluation import job as evaluation
from adgen.on_ray.evaluation.job import evaluate_run


@pytest.fixture
def shop(references_shop: Path) -> Path:
    return references_shop


@pytest.fixture
def store(store_of_references: Path) -> Path:
    return store_of_references


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(evaluation, "score", score_here)
    monkeypatch.setattr(evaluation, "cluster_device", lambda device: "cpu")
    monkeypatch.setattr(scoring_networks, "shipped_encoder", lambda: None)
    monkeypatch.setattr(scoring_networks, "shipped_model", lambda: None)


def rows_of_run(store: Path, shop: Path, out: Path) -> list[dict]:
    evaluate_run(run_settings(store, shop, out), Silent())
    return rows_of(out)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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

    networks = networks | {"dinov2": save_dinov2(tmp_path / "other-dinov2", seed=1)}
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


@pytest.mark.slow
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
