"""An evaluation that was stopped goes on with what is missing, on a folder and on S3, and takes nobody else's parts."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file, save_file
from support.evaluations import do_shards, draw_shop, plan_run, save_small_encoder, score_here
from support.models import save_small_model
from support.progress import Silent
from support.runs import CAMPAIGN, Crash, CrashingStorage, WrappedStorage

from adgen.creatives.publish import finish
from adgen.creatives.reading import open_published
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.errors import ModelError, SettingsError
from adgen.evaluation.report.tables import print_scores
from adgen.evaluation.results.folder import IDENTITY, REPORT, Identity, Results
from adgen.model.modules import ModelFacts
from adgen.model.pbs import PBS_FILE
from adgen.on_ray.evaluation import job as evaluation
from adgen.on_ray.evaluation import model as model_evaluation
from adgen.on_ray.evaluation.job import evaluate_run
from adgen.on_ray.evaluation.model import evaluate_model
from adgen.on_ray.evaluation.settings import ModelEvaluationSettings, RunEvaluationSettings

pytestmark = pytest.mark.slow

# What a folder and S3 do alike: on S3, and on a folder in make test-long.
on_s3 = pytest.mark.parametrize("store_uri", [pytest.param("folder", marks=pytest.mark.long), "s3"], indirect=True)


class Counting(Silent):
    """Counts rows, remembers what it was told, and dies when told so."""

    def __init__(self, dies_after: int | None = None):
        super().__init__()
        self.phases, self.dies_after = [], dies_after

    def phase(self, name: str, total: int | None = None) -> None:
        self.phases.append((name, total))

    def advance(self, pairs: int) -> None:
        super().advance(pairs)
        if self.dies_after is not None and self.done >= self.dies_after:
            raise Crash("advance")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return draw_shop(tmp_path_factory.mktemp("inputs") / "shop")


@pytest.fixture(scope="module")
def store(shop: Path, tmp_path_factory) -> Path:
    """Twelve creatives in three shards."""
    store = tmp_path_factory.mktemp("run") / "store"
    run = plan_run(store, shop)
    do_shards(run, shop)
    finish(run)
    return store


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return save_small_encoder(tmp_path_factory.mktemp("encoder") / "pbs")


@pytest.fixture(autouse=True)
def scored_here(monkeypatch):
    monkeypatch.setattr(evaluation, "score", score_here)
    monkeypatch.setattr(evaluation, "cluster_device", lambda device: "cpu")


@pytest.fixture
def access(store_uri: str, request: pytest.FixtureRequest) -> S3Access:
    """How to reach an evaluation at store_uri."""
    return request.getfixturevalue("s3_access") if store_uri.startswith("s3://") else S3Access()


@pytest.fixture
def asked(store, shop, encoder, store_uri, access) -> Callable[..., RunEvaluationSettings]:
    """Settings of the evaluation at store_uri; some may be others."""

    def settings(**given) -> RunEvaluationSettings:
        usual = {"store": str(store), "campaign": CAMPAIGN, "inputs": str(shop), "encoder": encoder, "out": store_uri, "s3": access}
        return RunEvaluationSettings(**usual | {"resamples": 100} | given)

    return settings


def keys(storage: Storage) -> list[str]:
    return sorted(entry.key for entry in storage.entries(""))


def stop_after(rows: int, settings: RunEvaluationSettings) -> None:
    with pytest.raises(Crash):
        evaluate_run(settings, Counting(dies_after=rows))


def without_time(record: dict) -> dict:
    return {name: value for name, value in record.items() if name not in ("seconds", "parts", "settings")}


def test_a_second_start_scores_only_what_is_missing_and_says_so(asked, store_uri, access, tmp_path, capsys):
    whole = evaluate_run(asked(out=str(tmp_path / "whole")), Counting())
    assert whole["parts"] == {"found": 0, "scored": 3}
    storage = open_storage(store_uri, access)
    stop_after(10, asked())
    assert [key for key in keys(storage) if key.startswith("rows/")] == ["rows/000000.parquet", "rows/000001.parquet"]
    assert IDENTITY in keys(storage)
    assert not {"summary.json", REPORT} & set(keys(storage))

    record = evaluate_run(asked(), bar := Counting())
    assert (bar.done, record["rows"], record["parts"]) == (2, 12, {"found": 2, "scored": 1})
    assert bar.phases[0] == ("score (2 of 3 parts are there)", 2)
    print_scores(Console(width=120), record)
    assert "2 of 3 parts were there from an earlier start" in capsys.readouterr().out
    assert without_time(record) == without_time(whole), "features of the parts that were there are summed up, too"
    assert json.loads(storage.read("summary.json")) == record
    assert b"<h2>Scores</h2>" in storage.read(REPORT)
    names = ["diversity.parquet", IDENTITY, REPORT, *(f"rows/00000{number}.parquet" for number in range(3)), "summary.json"]
    assert keys(storage) == names
    with pytest.raises(SettingsError, match="an evaluation lies there and is finished"):
        evaluate_run(asked(), Silent())


@on_s3
def test_an_evaluation_that_had_all_parts_scores_nothing(asked, store_uri, access):
    stop_after(12, asked())
    record = evaluate_run(asked(), bar := Counting())
    assert (bar.done, record["rows"], record["parts"]) == (0, 12, {"found": 3, "scored": 0})


@on_s3
def test_another_evaluation_s_parts_are_refused(asked, store_uri, access, shop, store, tmp_path):
    stop_after(5, asked())
    before = keys(open_storage(store_uri, access))
    other = save_small_encoder(tmp_path / "other-pbs")
    save_file({name: tensor * 2 for name, tensor in load_file(other / PBS_FILE).items()}, other / PBS_FILE)
    run = plan_run(tmp_path / "other-store", shop)
    do_shards(run, shop)
    finish(run)
    first = open_published(open_storage(store), CAMPAIGN).run.run_id
    tables, adapter = draw_shop(tmp_path / "other-shop"), tmp_path / "adapter"
    save_small_model(adapter)
    for given, told in (
        ({"store": str(tmp_path / "other-store")}, rf"runs is {first[:12]}.* there and {run.run_id}"),
        ({"encoder": other}, "encoder is [0-9a-f]{12} there and [0-9a-f]{12} here"),
        ({"adapter": adapter}, "networks is"),
        ({"inputs": str(tables)}, "settings is"),
    ):
        with pytest.raises(SettingsError, match=rf"out: {store_uri}: parts of another evaluation lie there: {told}.*--out"):
            evaluate_run(asked(**given), Silent())
    assert keys(open_storage(store_uri, access)) == before
    assert evaluate_run(asked(resamples=200, device="cpu"), Silent())["parts"] == {"found": 1, "scored": 2}


def test_parts_of_nobody_and_of_another_version_are_refused(asked, store_uri, access):
    stop_after(5, asked())
    storage = open_storage(store_uri, access)
    identity = json.loads(storage.read(IDENTITY))
    storage.put(IDENTITY, json.dumps(identity | {"version": "0" * 64}).encode())
    with pytest.raises(SettingsError, match="version is 000000000000 there"):
        evaluate_run(asked(), Silent())
    storage.put(IDENTITY, b'{"runs": []}')
    with pytest.raises(SettingsError, match=rf"{IDENTITY}: is not the identity of an evaluation"):
        evaluate_run(asked(), Silent())
    storage.delete(IDENTITY)
    with pytest.raises(SettingsError, match="does not say whose it is"):
        evaluate_run(asked(), Silent())


class CrashingWrites(CrashingStorage):
    """Dies before the write after n others."""

    def act(self, name: str, *arguments):
        return super().act(name, *arguments) if name in ("create", "put") else getattr(self.inner, name)(*arguments)


@on_s3
@pytest.mark.parametrize("writes", range(8))  # an identity, features and rows of three shards, the record
def test_stopped_between_any_two_writes_it_goes_on_to_the_same_end(asked, tmp_path, monkeypatch, writes):
    out = tmp_path / "out"

    def crashing(*_):
        return nullcontext(Results(CrashingWrites(open_storage(out), writes), out))

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "open_results", crashing)
        with pytest.raises(Crash):
            evaluate_run(asked(out=str(out)), Silent())
    assert not (out / "summary.json").exists()
    record = evaluate_run(asked(out=str(out)), Silent())
    assert record["parts"]["found"] == max(0, writes - 1) // 2
    parts = sorted((out / "rows").iterdir())
    assert [pq.ParquetFile(part).metadata.num_rows for part in parts] == [5, 5, 2]


def test_a_model_s_evaluation_goes_on_scoring_what_it_made(shop, encoder, tmp_path, monkeypatch):
    made = []

    def refresh(settings, progress, stages, inputs):
        made.append(settings.plan.campaign_seed)
        run = plan_run(Path(settings.store), shop, resume_key=str(len(made)))  # a finished run is not resumed
        do_shards(run, shop, painted=True, seed=settings.plan.campaign_seed)
        finish(run)
        return SimpleNamespace(run_id=run.run_id)

    monkeypatch.setattr(model_evaluation, "refresh", refresh)
    monkeypatch.setattr(model_evaluation, "CAMPAIGN", CAMPAIGN)
    monkeypatch.setattr(model_evaluation, "maker_digest", lambda model: None)
    out = tmp_path / "out"
    model = tmp_path / "model"
    save_small_model(model)
    asked = ModelEvaluationSettings(inputs=str(shop), model=model, encoder=encoder, out=out, seeds=2, resamples=100)
    with pytest.raises(Crash):
        evaluate_model(asked, Counting(dies_after=17))
    with pytest.raises(SettingsError, match="settings is"):
        evaluate_model(asked.model_copy(update={"limit": 3}), Silent())
    facts = ModelFacts.load(model)
    facts.model_copy(update={"modules": facts.modules | {"preference": "untrained"}}).save(model)
    with pytest.raises(ModelError, match=r"untrained modules.*preference"):  # what --allow-untrained began
        evaluate_model(asked, Silent())
    facts.save(model)
    record = evaluate_model(asked, Silent())
    assert made == [0, 1]
    assert (record["rows"], record["parts"]) == (24, {"found": 4, "scored": 2})
    monkeypatch.setattr(model_evaluation, "maker_digest", lambda model: "another")
    (out / "summary.json").unlink()
    with pytest.raises(SettingsError, match="are not of"):
        evaluate_model(asked, Silent())


@pytest.mark.parametrize("out", ["s3://bucket/out", "s3:/bucket/out"])
def test_what_must_be_local_is_refused_elsewhere(out):
    """And not made a folder called s3: of."""
    with pytest.raises(ValidationError, match=r"out\n.*must be a local folder"):
        ModelEvaluationSettings(inputs="shop", out=out)
    with pytest.raises(ValidationError, match=r"against\n.*must be a local folder"):
        RunEvaluationSettings(inputs="shop", store="s3://bucket/store", campaign=CAMPAIGN, against=out)


def test_two_that_begin_at_once_have_one_identity(tmp_path):
    mine, theirs = (Identity((run,), "s", None, "j", "c") for run in "ab")

    class Late(WrappedStorage):
        """Another command's identity is there by the time ours is written."""

        def act(self, name: str, *arguments):
            if name == "create":
                self.inner.create(IDENTITY, theirs.to_bytes())
            return super().act(name, *arguments)

    assert Results(Late(open_storage(tmp_path / "same")), tmp_path / "same").begin(theirs) == set()
    with pytest.raises(SettingsError, match="runs is b there and a here"):
        Results(Late(open_storage(tmp_path / "other")), tmp_path / "other").begin(mine)


def test_foreign_files_in_an_evaluation_are_not_seen(tmp_path):
    for name in ("rows/.DS_Store", "rows/Thumbs.db", "rows/@eaDir/000001.parquet", "features/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"theirs")
    results = Results(open_storage(tmp_path), tmp_path)
    assert results.begin(Identity(("a",), "s", None, "j", "c")) == set()
    results.storage.put("rows/000007.parquet", b"")
    assert results.begin(Identity(("a",), "s", None, "j", "c")) == {7}
