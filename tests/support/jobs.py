"""Refresh jobs in processes of their own, for tests that kill or race them; the test's process only watches the store."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from adgen.creatives.journal import Journal
from adgen.creatives.reading import open_published
from adgen.creatives.runs import list_runs
from adgen.creatives.stores import open_storage
from adgen.creatives.verify import verify
from adgen.shop.synthetic.synth import synthesize
from support.models import save_small_model

NUM_PAIRS, PER_SHARD = 16, 2
CAMPAIGN = "c"
ROOT = Path(__file__).parents[2]
UNEQUAL = {"generated_at", "seconds"}


def make_inputs(folder: Path) -> Path:
    """A shop and a small random model, slow enough to be killed while it works."""
    synthesize(folder / "shop", num_users=6, num_products=30, num_pairs=NUM_PAIRS, num_references=0, picture_side=64)
    save_small_model(folder / "model", num_layers=16)
    return folder


def command(inputs: Path, store: Path, *more: str, script: Path = ROOT / "jobs" / "refresh.py") -> list[str]:
    """The refresh of the whole shop by one engine; `more` overrides."""
    return [
        sys.executable, str(script), str(ROOT / "jobs" / "refresh.toml"),
        "--inputs", str(inputs / "shop"), "--store", str(store), "--campaign", CAMPAIGN, "--model", str(inputs / "model"),
        "--pairs-per-shard", str(PER_SHARD), "--sampling.max-title-tokens", "8", "--finish.width", "64",
        "--finish.height", "64", "--finish.gates.title-empty", "warn", "--cluster.actors", "1", "--json", *more,
    ]  # fmt: skip


def start(words: list[str], **environment: str) -> subprocess.Popen:
    """In a session of its own, so that a kill hits the driver alone."""
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=os.environ | environment)


def end(process: subprocess.Popen, code: int = 0) -> tuple[dict, str]:
    """Wait for it; what its one line on stdout says (killed: it says nothing, {}), and its stderr."""
    out, told = process.communicate(timeout=300)
    assert process.returncode == code, told[-3000:]
    lines = out.splitlines()
    assert len(lines) == (0 if code < 0 else 1), out
    return (json.loads(lines[0]) if lines else {}), told


def refresh(inputs: Path, store: Path, *more: str) -> dict:
    """The whole job; what `--json` says."""
    return end(start(command(inputs, store, *more)))[0]


def wait_until(process: subprocess.Popen, happened: Callable[[], bool]) -> None:
    """Return as soon as it happened, while the job is running."""
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shards_done(store: Path) -> int:
    """Journal parts of all runs."""
    if not store.exists():
        return 0
    storage = open_storage(store)
    return sum(len(Journal(storage, CAMPAIGN, run.run_id).done()) for run in list_runs(storage, CAMPAIGN))


def rows(store: Path, unequal: set[str] = UNEQUAL) -> dict[str, dict]:
    """The published rows without what no two runs have in common."""
    found = open_published(open_storage(store), CAMPAIGN).rows()
    return {row["pair_id"]: {name: value for name, value in row.items() if name not in unequal} for row in found}


def objects(store: Path) -> dict[str, bytes]:
    """Every object, byte for byte."""
    return {str(path.relative_to(store)): path.read_bytes() for path in (store / "objects").rglob("*") if path.is_file()}


def assert_published_as(undisturbed: Path, store: Path, unequal: set[str] = UNEQUAL) -> None:
    """The same rows and bytes, and every object there."""
    assert rows(store, unequal) == rows(undisturbed, unequal)
    assert objects(store) == objects(undisturbed)
    checked = verify(open_storage(store), CAMPAIGN)
    assert (checked.ok, checked.missing, checked.mismatched) == (NUM_PAIRS, 0, 0)


@contextmanager
def ray_nodes(count: int, **environment: str):
    """A Ray cluster in a process of its own, two slots a node: its address, and an act that kills
    its newest node (of one: the head) and says which stages ran there."""
    script, pipe = str(Path(__file__).parent / "ray_nodes.py"), subprocess.PIPE
    words = [sys.executable, script, str(count)]
    nodes = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=os.environ | environment)

    def kill_last() -> list[str]:
        print("kill", file=nodes.stdin, flush=True)
        return json.loads(nodes.stdout.readline())

    try:
        yield nodes.stdout.readline().strip(), kill_last
    finally:
        nodes.stdin.close()
        nodes.wait(60)
