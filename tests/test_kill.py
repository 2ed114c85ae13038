"""Kill tests that really kill: a driver dies by SIGKILL, the same command goes on, and nobody could tell.

The job runs in processes of its own, with their own Ray; this process only watches the store.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_models import save_small_model

from adgen.creatives.journal import Journal
from adgen.creatives.reading import open_published
from adgen.creatives.runs import list_runs
from adgen.creatives.storage import open_storage
from adgen.creatives.verify import verify
from adgen.shop.synth import synthesize

pytestmark = [pytest.mark.kill, pytest.mark.timeout(900)]
NUM_PAIRS, PER_SHARD = 16, 2
ROOT = Path(__file__).parents[1]
UNEQUAL = {"generated_at", "seconds", "carried_from"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Shop and model, shared by both campaigns."""
    folder = tmp_path_factory.mktemp("kill")
    synthesize(folder / "shop", num_users=6, num_products=30, num_pairs=NUM_PAIRS, num_references=0, picture_side=64)
    save_small_model(folder / "model")
    return folder


def command(inputs: Path, store: Path) -> list[str]:
    return [
        sys.executable, str(ROOT / "jobs" / "refresh.py"), str(ROOT / "jobs" / "refresh.toml"),
        "--inputs", str(inputs / "shop"), "--store", str(store), "--campaign", "c", "--model", str(inputs / "model"),
        "--pairs-per-shard", str(PER_SHARD), "--sampling.max-title-tokens", "8", "--finish.width", "64",
        "--finish.height", "64", "--finish.gates.title-empty", "warn", "--cluster.actors", "1", "--json",
    ]  # fmt: skip


def refresh(inputs: Path, store: Path) -> dict:
    done = subprocess.run(command(inputs, store), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def start_and_kill(inputs: Path, store: Path, when) -> int:
    """Start the job in a session of its own, SIGKILL the driver as soon as `when(store)`; shards done by then."""
    process = subprocess.Popen(command(inputs, store), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 300
    while not when(store):
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return shards_done(store)


def shards_done(store: Path) -> int:
    storage = open_storage(store)
    return sum(len(Journal(storage, "c", run.run_id).done()) for run in list_runs(storage, "c")) if store.exists() else 0


def rows(store: Path) -> dict[str, dict]:
    return {r["pair_id"]: {k: v for k, v in r.items() if k not in UNEQUAL} for r in open_published(open_storage(store), "c").rows()}


def objects(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in (store / "objects").rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(inputs):
    store = inputs / "undisturbed"
    summary = refresh(inputs, store)
    assert summary["engine_calls"] == NUM_PAIRS
    return rows(store), objects(store)


MOMENTS = {
    "during the plan": lambda store: any(store.glob("campaigns/c/runs/*/run.json")),
    "mid-shards": lambda store: store.exists() and shards_done(store) >= 2,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_driver_loses_nothing_and_doubles_nothing(inputs, undisturbed, tmp_path, moment):
    store = tmp_path / "store"
    done = start_and_kill(inputs, store, MOMENTS[moment])
    again = refresh(inputs, store)
    assert again["published"]
    assert again["pairs"] == NUM_PAIRS
    # At most what was in flight is made again; zombies of the killed driver may even have committed some of it.
    assert again["engine_calls"] <= NUM_PAIRS - done * PER_SHARD
    assert rows(store) == undisturbed[0]
    assert objects(store) == undisturbed[1]
    checked = verify(open_storage(store), "c")
    assert (checked.ok, checked.missing, checked.mismatched) == (NUM_PAIRS, 0, 0)


def test_an_actor_killed_mid_run_costs_nothing(inputs, undisturbed, tmp_path):
    """The engine's process dies; Ray starts another one and the shard is done again."""
    store = tmp_path / "store"
    process = subprocess.Popen(
        command(inputs, store), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    while not (store.exists() and shards_done(store) >= 1):
        assert process.poll() is None
        time.sleep(0.05)
    engines = engine_processes(process.pid)
    assert engines, "no engine process was found to kill"
    for pid in engines:
        os.kill(pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1])["published"]
    assert rows(store) == undisturbed[0]


def engine_processes(session: int) -> list[int]:
    """Ray workers below our own job (and no one else's) that run the engine, by their title."""
    import psutil

    workers = psutil.Process(session).children(recursive=True)
    return [w.pid for w in workers if any("Generate" in part for part in w.cmdline())]
