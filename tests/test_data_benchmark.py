"""The data benchmark is a real refresh: rows, objects and commits as ever, with only the engine's part left out."""

import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adgen.creatives.reading import open_published
from adgen.creatives.stores import open_storage
from adgen.creatives.verify import verify
from adgen.errors import RunError
from adgen.on_ray.benchmark.processes import RAY, PhaseClock, PhaseCost, ProcessWatch
from adgen.on_ray.benchmark.refresh import Measured, as_record, cut_inputs, marginal_rates, measure
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.shop.inputs.tables import open_inputs
from adgen.shop.synthetic.synth import synthesize


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    synthesize(folder / "shop", num_users=10, num_products=12, num_references=0, picture_side=64)
    return cut_inputs(folder / "shop", folder / "inputs", 22)


def settings(inputs: Path, store: Path, model: Path) -> RefreshSettings:
    values = {"inputs": str(inputs), "store": str(store), "campaign": "benchmark", "model": str(model)}
    return RefreshSettings.model_validate(values | {"plan": {"pairs_per_shard": 8}, "finish": {"width": 64, "height": 64}})


def test_inputs_of_a_size_are_the_first_pairs_and_all_their_users(inputs):
    opened = open_inputs(str(inputs))
    assert (opened["pairs"].num_rows, opened["histories"].num_rows) == (22, 6)
    users = set(pq.read_table(inputs / "histories.parquet")["user_id"].to_pylist())
    assert set(pq.read_table(inputs / "pairs.parquet")["user_id"].to_pylist()) == users


@pytest.mark.parametrize(("side", "finisher"), [pytest.param(None, "NullFinish", marks=pytest.mark.long), (64, "FinishAndCommit")])
def test_a_measured_refresh_is_published_and_whole(ray_cluster, inputs, model, tmp_path, side, finisher):
    made = settings(inputs, tmp_path, model)
    run = measure(made, 22, side)
    store = open_storage(made.store)
    checked = verify(store, "benchmark")
    assert (checked.rows, checked.ok, checked.missing, checked.mismatched) == (22, 22, 0, 0)
    titles = {row["title"] for row in open_published(store, "benchmark").rows()}
    assert titles <= set(pq.read_table(inputs / "products.parquet")["title"].to_pylist())
    assert list(run.phases) == ["catalog", "clean up", "plan", "generate", "publish"]
    assert all(phase.seconds > 0 for phase in run.phases.values())
    [record] = as_record([run])
    look_up = "NullLookUp" if side is None else "LookUp"
    assert {look_up, "NullGenerate", finisher, RAY, "driver, generate"} <= record["peak_own_mb"].keys()
    assert all(record["peak_rss_mb"][kind] >= own > 10 for kind, own in record["peak_own_mb"].items())
    with pytest.raises(RunError, match="of 22 pairs is not whole"):
        measure(made, 22, side)  # all is carried: that measures nothing


def test_a_marginal_rate_leaves_out_what_starting_costs():
    def run(pairs: int) -> Measured:
        cost = {name: PhaseCost(name, 9.0, 10 + pairs / 1000, 5 + pairs / 1000) for name in ("plan", "generate", "publish")}
        return Measured(pairs, "data", cost, {}, {})

    assert marginal_rates([run(2000), run(1000)])["plan"] == {"cpu_seconds": 500.0, "user_seconds": 1000.0}
    assert marginal_rates([run(2000)]) == {}


BUSY = """
import time
block, end = bytearray(b"x") * (300 << 20), time.process_time() + 0.5
while time.process_time() < end: pass
time.sleep(60)
"""


def test_the_watch_sees_what_a_child_process_uses():
    with ProcessWatch(interval_seconds=0.1) as watch, subprocess.Popen([sys.executable, "-c", BUSY]) as child:
        clock = PhaseClock(watch)
        clock.phase("work")
        deadline = time.time() + 60
        seen = lambda: watch.cpu_by_kind[RAY] >= 0.5 and RAY in watch.memory and watch.memory[RAY].own > 300 << 20  # noqa: E731
        while not seen() and time.time() < deadline:
            time.sleep(0.1)
        phases = clock.close()
        child.kill()
    assert phases["work"].cpu_seconds >= 0.4
    assert watch.memory[RAY].own > 300 << 20
