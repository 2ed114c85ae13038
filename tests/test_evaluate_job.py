"""The gate and evaluations from the command line: exit codes, a held run scored, two compared, one gone on with."""

import importlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.evaluations import draw_shop, save_small_encoder
from support.models import save_small_model

from adgen.creatives.publish import read_pointer
from adgen.creatives.stores import open_storage

ROOT = Path(__file__).parents[1]
CAMPAIGN = "spring"


@pytest.fixture(scope="module")
def jobs():
    """jobs/refresh.py and jobs/evaluate.py as modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "jobs"))
        return {name: importlib.import_module(name) for name in ("refresh", "evaluate")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A shop of twelve pairs with references, a model and an encoder."""
    folder = tmp_path_factory.mktemp("inputs")
    draw_shop(folder / "shop")
    save_small_model(folder / "model")
    save_small_encoder(folder / "pbs")
    return folder


def refreshed(inputs: Path, store: Path, *more: str) -> list[str]:
    return [
        str(ROOT / "jobs" / "refresh.toml"), "--inputs", str(inputs / "shop"), "--store", str(store), "--campaign", CAMPAIGN,
        "--model", str(inputs / "model"), "--pairs-per-shard", "6", "--sampling.max-title-tokens", "8",
        "--finish.width", "64", "--finish.height", "64", "--finish.gates.title-empty", "warn",
        "--finish.gates.picture-blank", "off", "--gate.sample", "6", "--gate.history-margin-min", "1.9",
        "--gate.encoder", str(inputs / "pbs"), "--engine.no-deepspeed", "--json", *more,
    ]  # fmt: skip


def evaluated(inputs: Path, store: Path, out: Path, *more: str) -> list[str]:
    return [
        "run", "--store", str(store), "--campaign", CAMPAIGN, "--inputs", str(inputs / "shop"), "--encoder", str(inputs / "pbs"),
        "--resamples", "100", "--out", str(out), *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_is_held_scored_published_and_compared(no_ray, jobs, inputs, tmp_path, capsys):
    store, first, second = tmp_path / "store", tmp_path / "first", tmp_path / "second"

    def told() -> dict:
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    assert jobs["refresh"].main(refreshed(inputs, store)) == 1
    held = told()
    assert (held["published"], held["state"]) == (False, "HELD")
    assert held["note"].startswith("held by its gate: history_margin_min is 1.9, pbs_history_margin of ")
    assert read_pointer(open_storage(store), CAMPAIGN) == (None, None)

    assert jobs["evaluate"].main(evaluated(inputs, store, first)) == 1, "nothing is published"
    assert "evaluate: " in capsys.readouterr().err
    assert jobs["evaluate"].main(evaluated(inputs, store, first, "--run", held["run_id"])) == 0
    record = told()
    assert (record["run_id"], record["rows"]) == (held["run_id"], 12)
    assert record == json.loads((first / "summary.json").read_text())

    assert jobs["refresh"].main(refreshed(inputs, store, "--publish-anyway")) == 0
    assert (told()["run_id"], read_pointer(open_storage(store), CAMPAIGN)[0].run_id) == (held["run_id"], held["run_id"])

    assert jobs["evaluate"].main(evaluated(inputs, store, second, "--against", str(first))) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    against = record["against"]
    assert (against["pairs"], against["only_here"], against["only_there"]) == (12, 0, 0)
    assert against["differences"].keys() >= {"title_empty", "product_iou", "pbs_history_margin"}
    for each in against["differences"].values():
        assert (each["mean"], each["significant"]) == (pytest.approx(0, abs=1e-4), False)  # the same creatives
    assert f"against {first}" in printed.err.replace("\n", "")
    _go_on(jobs["evaluate"], evaluated(inputs, store, second), second, capsys)


def _go_on(job, words: list[str], out: Path, capsys) -> None:
    """A finished evaluation is not done again; one that lacks its record and a part is, but for what is there."""
    assert job.main(words) == 1
    assert "an evaluation lies there and is finished" in capsys.readouterr().err
    (out / "summary.json").unlink()
    gone = out / "rows" / "000001.parquet"
    before, rows = (out / "rows" / "000000.parquet").stat().st_mtime_ns, pq.read_table(gone)
    gone.unlink()
    assert job.main(words) == 0
    printed = capsys.readouterr()
    assert "1 of 2 parts were there from an earlier start" in printed.err
    assert json.loads(printed.out)["parts"] == {"found": 1, "scored": 1}
    assert (out / "rows" / "000000.parquet").stat().st_mtime_ns == before
    assert pq.read_table(gone).column("pair_id") == rows.column("pair_id")
