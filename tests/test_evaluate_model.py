"""A model evaluated: the pairs, seeds, what was painted, and the whole with a model."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.evaluations import do_shards, plan_run, rows_of, score_here
from support.models import save_small_model
from support.progress import Silent
from support.runs import CAMPAIGN

from adgen.creatives.publish import finish
from adgen.creatives.reading import open_published
from adgen.creatives.secrets import DEVELOPMENT_KEYS
from adgen.creatives.stores import open_storage
from adgen.errors import SettingsError
from adgen.evaluation.results.rows import ROWS
from adgen.evaluation.scoring import networks as scoring_networks
from adgen.on_ray.evaluation import job as evaluation
from adgen.on_ray.evaluation import model as model_evaluation
from adgen.on_ray.evaluation.job import ScoredRun, score_runs
from adgen.on_ray.evaluation.keys import keys_of
from adgen.on_ray.evaluation.model import evaluate_model, refresh_settings, with_pairs
from adgen.on_ray.evaluation.settings import ModelEvaluationSettings, ScoringSettings
from adgen.on_ray.evaluation.unpasted import KEEPING_UNPASTED, FinishKeepingUnpasted
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.payload import lossless, raw
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.scoring.unpasted_pictures import read_unpasted
from adgen.shop.inputs.tables import open_inputs
from adgen.shop.key_files import load_keys


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


@pytest.mark.slow
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


def keys_in(out: Path, shop: Path, **more):
    return keys_of(ModelEvaluationSettings(inputs=str(shop), out=out, **more))


def test_an_evaluation_names_users_by_keys_of_its_own(shop, tmp_path):
    keys = keys_in(tmp_path / "out", shop)
    for name, public in DEVELOPMENT_KEYS.items():
        file = getattr(keys, name)
        assert file == tmp_path / "out" / "store" / "private" / name
        assert file.stat().st_mode & 0o777 == 0o600
        assert getattr(load_keys(keys, "store"), name) != public
    assert load_keys(keys, "store") == load_keys(keys_in(tmp_path / "out", shop), "store"), "or no run would be resumed"
    assert load_keys(keys, "store") != load_keys(keys_in(tmp_path / "other", shop), "store")
    asked = ModelEvaluationSettings(inputs=str(shop), out=tmp_path / "out")
    assert [refresh_settings(asked, tmp_path, "store", number).keys for number in (0, 1)] == [keys, keys]


def test_keys_are_taken_over_from_the_evaluation_to_compare_with(shop, tmp_path):
    first = load_keys(keys_in(tmp_path / "first", shop), "store")
    assert load_keys(keys_in(tmp_path / "second", shop, against=tmp_path / "first"), "store") == first
    with pytest.raises(SettingsError, match=r"against: .*before has no file store/private/campaign_key.*allow-development-keys"):
        keys_in(tmp_path / "third", shop, against=tmp_path / "before")
    as_before = keys_in(tmp_path / "third", shop, against=tmp_path / "before", keys={"allow_development_keys": True})
    assert load_keys(as_before, "store").campaign_key == DEVELOPMENT_KEYS["campaign_key"]
    assert not (tmp_path / "third").exists()


def test_key_files_of_the_settings_are_used(shop, tmp_path):
    (tmp_path / "key").write_bytes(b"a key that is long enough")
    (tmp_path / "key").chmod(0o600)
    keys = keys_in(tmp_path / "out", shop, keys={"campaign_key": tmp_path / "key"})
    assert load_keys(keys, "store").campaign_key == b"a key that is long enough"
    assert [file.name for file in (tmp_path / "out" / "store" / "private").iterdir()] == ["user_secret"]


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


@pytest.mark.slow
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
    painted = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)  # of one colour it would be replaced
    picture = lossless(painted)
    product = pq.read_table(shop / "products.parquet").to_pylist()[0]
    ids = {"pair_id": "ab" * 32, "fingerprint": "cd" * 32, "product_id": product["product_id"], "product_title": product["title"]}
    pair = product | ids | {"title": product["title"], "picture": raw(painted), "channel": None}
    settings = RefreshSettings(store=str(tmp_path), campaign=CAMPAIGN)
    stage = FinishKeepingUnpasted(Context(settings, "20260101000000-000000-00000000", "", ""))
    made = stage.creative(pair, {product["product_id"]: (shop / product["cutout"]).read_bytes()})
    assert made.picture.data != picture
    assert read_unpasted(stage.journal.storage, CAMPAIGN, pair) == picture
    assert read_unpasted(stage.journal.storage, CAMPAIGN, pair | {"fingerprint": "ef" * 32}) is None
    assert read_unpasted(stage.journal.storage, CAMPAIGN, pair | {"fingerprint": None}) is None


@pytest.mark.slow
def test_a_model_is_evaluated_on_the_pairs_with_a_reference(no_ray, shop, encoder, tmp_path):
    save_small_model(tmp_path / "model")
    out = tmp_path / "out"
    of_model = {"model": tmp_path / "model", "adapter": tmp_path / "model", "sampling": {"max_title_tokens": 8}}
    settings = of_model | {"engine": {"deepspeed": False}, "limit": 5, "seeds": 2}
    asked = ModelEvaluationSettings(inputs=str(shop), encoder=encoder, out=out, **settings)
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
