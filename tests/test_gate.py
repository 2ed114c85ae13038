"""The gate before publishing: who is sampled, what falls short, and that a held run is scored again and not made again."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.evaluations import do_shards, draw_shop, plan_run, save_small_encoder
from support.here import without_ray
from support.models import save_small_model
from support.progress import Silent
from support.runs import CAMPAIGN, begin

from adgen.creatives.documents import PlanPart
from adgen.creatives.publish import finish, read_pointer
from adgen.creatives.reading import open_published, open_run
from adgen.creatives.runs import Run, read_run
from adgen.creatives.stores import open_storage
from adgen.errors import ModelError, SettingsError
from adgen.evaluation.results.rows import ROWS
from adgen.evaluation.scoring.creatives import SCORED
from adgen.model.pbs import PBS_FILE
from adgen.on_ray.evaluation.job import evaluate_run
from adgen.on_ray.evaluation.settings import RunEvaluationSettings
from adgen.on_ray.refresh import gate as module
from adgen.on_ray.refresh.gate import check_gate_settings, sample_items, verdict_of
from adgen.on_ray.refresh.job import Summary, refresh
from adgen.on_ray.refresh.settings import GateSettings, RefreshSettings


def parts(*sizes: int) -> list[PlanPart]:
    return [PlanPart(index=index, rows=rows, bytes=1, sha256="0") for index, rows in enumerate(sizes)]


def places(items: list[dict]) -> list[tuple[int, int]]:
    return [(part, at) for item in items for part, of in zip(item["parts"], item["offsets"], strict=True) for at in of]


def test_a_sample_is_spread_over_the_whole_run_and_is_the_same_each_time():
    plan = parts(10, 1, 300, 0, 89)
    chosen = places(sample_items(plan, 100, "run"))
    assert len(chosen) == len(set(chosen)) == 100
    assert all(0 <= at < plan[part].rows for part, at in chosen)
    assert Counter(part for part, _ in chosen)[2] == pytest.approx(75, abs=1)
    assert chosen == places(sample_items(plan, 100, "run")) != places(sample_items(plan, 100, "other run"))
    assert sorted(places(sample_items(plan, 1000, "run"))) == [(p.index, at) for p in plan for at in range(p.rows)]
    assert sample_items(parts(), 100, "run") == []
    for item in sample_items(parts(*[4] * 100), 200, "run"):
        assert len(item["parts"]) > 40  # of many users: each finds another user


def test_every_row_is_as_likely_to_be_sampled():
    counts = Counter(place for run in range(3000) for place in places(sample_items(parts(3, 7, 2), 3, f"run {run}")))
    assert len(counts) == 12
    assert all(abs(count - 750) < 110 for count in counts.values())  # four standard deviations


def rows(**columns: list) -> list[pa.Table]:
    base = {"pair_id": "p", "variant": 0, "user_key": "u", "product_id": "p", "status": "ok", "left_out": []}
    made = [base | dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [pa.Table.from_pylist([row], SCORED) for row in made]


def test_what_falls_short_is_named_and_what_nobody_asked_for_is_not_checked():
    tables = rows(
        status=["ok", "ok", "rejected"],
        allowed_words=[1.0, 0.8, 0.0],
        copied=[0.0, 1.0, 1.0],
        product_iou=[0.9, 0.8, None],
    )
    assert verdict_of(GateSettings(), tables)["passed"]
    assert verdict_of(GateSettings(allowed_words_min=0.9, copy_rate_max=0.5, product_kept_min=0.85), tables)["passed"]
    verdict = verdict_of(GateSettings(allowed_words_min=0.91, copy_rate_max=0.4, history_margin_min=0.0), tables)
    assert not verdict["passed"]
    assert verdict["reasons"] == [
        "history_margin_min: none of 3 rows has a pbs_history_margin",
        "allowed_words_min is 0.91, allowed_words of 2 creatives is 0.9",
        "copy_rate_max is 0.4, copied of 2 creatives is 0.5",
    ]
    assert verdict["thresholds"]["copy_rate_max"] == {"wanted": 0.4, "found": 0.5, "rows": 2}


def test_a_threshold_without_its_encoder_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "shipped_encoder", lambda: None)
    check_gate_settings(GateSettings(allowed_words_min=0.5))
    with pytest.raises(SettingsError, match=r"gate\.history_margin_min needs a PBS encoder"):
        check_gate_settings(GateSettings(history_margin_min=0.1))
    with pytest.raises(SettingsError, match=r"gate\.encoder: .*nowhere"):
        check_gate_settings(GateSettings(history_margin_min=0.1, encoder=tmp_path / "nowhere"))
    encoder = save_small_encoder(tmp_path / "pbs")
    check_gate_settings(GateSettings(history_margin_min=0.1, encoder=encoder))
    (encoder / PBS_FILE).unlink()
    with pytest.raises(ModelError, match=PBS_FILE):
        check_gate_settings(GateSettings(history_margin_min=0.1, encoder=encoder))


# -- a held run --------------------------------------------------------------------------------------------------


def made_run(store: Path, shop: Path) -> Run:
    run = plan_run(store, shop)
    if run.document.state == "RUNNING":
        do_shards(run, shop)
    return run


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return draw_shop(tmp_path_factory.mktemp("inputs") / "shop")


def test_a_held_run_is_resumed_only_while_nothing_else_was_published(shop, tmp_path):
    store = open_storage(str(tmp_path / "store"))
    first = made_run(tmp_path / "store", shop)
    first.update(gate={"passed": False})
    assert finish(first, held="too few") is None
    document = read_run(store, CAMPAIGN, first.run_id)
    assert (document.state, document.note, document.counts.rows) == ("HELD", "too few", 12)
    assert read_pointer(store, CAMPAIGN) == (None, None)
    assert len(list(open_run(store, CAMPAIGN, first.run_id).rows())) == 12

    again = begin(store)
    assert (again.run_id, again.resumed, again.document.state, again.document.gate) == (first.run_id, True, "RUNNING", None)
    again.update(gate={"passed": False})
    finish(again, held="too few")
    other = plan_run(tmp_path / "store", shop, resume_key="tomorrow")
    assert other.run_id != first.run_id
    do_shards(other, shop)
    finish(other)
    assert begin(store).run_id not in (first.run_id, other.run_id)


def test_a_refresh_is_held_evaluated_and_published_anyway(ray_cluster, shop, tmp_path):
    save_small_model(tmp_path / "model")
    encoder, store = save_small_encoder(tmp_path / "pbs"), str(tmp_path / "store")
    made = RefreshSettings.model_validate(
        {
            "inputs": str(shop),
            "store": store,
            "campaign": CAMPAIGN,
            "model": str(tmp_path / "model"),
            "plan": {"pairs_per_shard": 6},
            "sampling": {"max_title_tokens": 8},
            "engine": {"deepspeed": False},
            "finish": {"width": 64, "height": 64, "gates": {"title_empty": "warn", "picture_blank": "off"}},
            "keys": {"allow_development_keys": True},
            "gate": {
                "sample": 9,
                "history_margin_min": 1.5,
                "product_kept_min": 0.1,
                "templates_max": 0.5,
                "encoder": str(encoder),
            },
        }
    )
    storage = open_storage(store)
    first = refresh_here(made)
    assert (first.published, first.state, first.engine_calls) == (False, "HELD", 12)
    assert first.note.startswith("held by its gate: history_margin_min is 1.5, pbs_history_margin of ")
    assert read_pointer(storage, CAMPAIGN) == (None, None)
    document = read_run(storage, CAMPAIGN, first.run_id)
    assert (document.state, document.note, document.gate["sample"]) == ("HELD", first.note, 9)
    assert document.gate["thresholds"]["product_kept_min"]["found"] > 0.1
    # A random model's titles are none: every attempt is refused, and a run of templates says so.
    assert document.gate["thresholds"]["templates_max"] == {"wanted": 0.5, "found": 1.0, "rows": 9}
    assert "templates_max is 0.5, template of 9 creatives is 1" in first.note
    assert (first.templates, first.drawn_again, document.counts.templates) == (12, 12, 12)

    again = refresh_here(made)
    assert (again.run_id, again.state, again.engine_calls) == (first.run_id, "HELD", 0)
    _evaluate_held(shop, store, first.run_id, {"encoder": encoder, "adapter": tmp_path / "model"}, tmp_path / "out")

    anyway = refresh_here(made.model_copy(update={"publish_anyway": True}))
    assert (anyway.run_id, anyway.published, anyway.state, anyway.engine_calls) == (first.run_id, True, "COMPLETE", 0)
    document = open_published(storage, CAMPAIGN).run
    assert (document.run_id, document.note) == (first.run_id, "")
    assert (document.gate["passed"], document.gate["published_anyway"]) == (False, True)


def refresh_here(made: RefreshSettings) -> Summary:
    with without_ray():
        return refresh(made, Silent())


def _evaluate_held(shop: Path, store: str, run_id: str, networks: dict[str, Path], out: Path) -> None:
    """The whole evaluation, on Ray, and that no user is named in it."""
    asked = RunEvaluationSettings(inputs=str(shop), store=store, campaign=CAMPAIGN, run=run_id, out=str(out), **networks)
    record = evaluate_run(asked, progress := Silent())
    assert progress.done == record["rows"] == sum(record["by_status"].values()) == 12
    assert json.loads((out / "summary.json").read_text()) == record
    assert "pbs_history_margin" in record["scores"]
    assert (out / "report.html").stat().st_size > 10_000
    users = pq.read_table(shop / "pairs.parquet")["user_id"].unique().to_pylist()
    parts = [pq.read_table(part).to_pylist() for part in (out / ROWS).iterdir()]
    parts.append(pq.read_table(out / "diversity.parquet").to_pylist())
    for text in [str(parts), *((out / name).read_text() for name in ("report.html", "summary.json"))]:
        assert not any(user in text for user in users)
    with pytest.raises(SettingsError, match="an evaluation lies there"):
        evaluate_run(asked, Silent())
