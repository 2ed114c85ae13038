"""`jobs/benchmark.py gpu`, on a CPU: one document, resumed; what fails costs no other measurement."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.progress import Silent

from adgen.on_ray.benchmark import gpu
from adgen.on_ray.benchmark.gpu import Measurement, measurements, run

pytestmark = pytest.mark.slow

SAYS = [sys.executable, "-c", "print('hello'); print('{\"x\": 1}')"]


def test_measurements_go_on_where_they_stopped_and_one_that_fails_costs_no_other(tmp_path):
    out = tmp_path / "gpu.json"
    bad = Measurement("bad", [sys.executable, "-c", "import sys; sys.exit('no kernel image')"], 1)
    long, good = Measurement("long", SAYS, 3600), Measurement("good", SAYS, 1)
    document = run([bad, long, good], out, 5, "cpu", Silent())
    assert json.loads(out.read_text()) == document
    assert document["measurements"]["good"]["found"] == {"x": 1}
    assert document["measurements"]["bad"]["rc"] == 1
    assert "no kernel image" in document["measurements"]["bad"]["error"]
    assert document["left_out"] == ["bad", "long"]
    good_again = Measurement("good", [sys.executable, "-c", "raise SystemExit(9)"], 1)
    again = run([bad._replace(command=SAYS), good_again], out, 5, "cpu", Silent())
    assert again["left_out"] == []
    assert again["measurements"]["good"] == document["measurements"]["good"]


def test_all_that_is_asked_of_a_gpu_is_among_them():
    names = [each.name for each in measurements(("janus-pro-1b", "janus-pro-7b"), "cuda", (16, 64), (1200, 600))]
    assert names[:3] == ["machine", "tests/gpu", "check-device janus-pro-1b"]
    for wanted in (
        "memory janus-pro-7b",
        "training janus-pro-1b",
        "engine janus-pro-7b batch 64 prompt 1200",
        "options janus-pro-7b",
    ):
        assert wanted in names
    assert len(names) == len(set(names)) == 16


@pytest.mark.parametrize("kind", ["check", "memory", "training"])
def test_its_own_measurements_run(kind):
    found = gpu.OWN[kind]("cpu", "tiny")
    if kind == "check":
        assert found["switched_off"] == []
    elif kind == "memory":
        assert found["peak_bytes"] > 0
        assert found["planned_slots"] == found["slots"] == 4
    else:
        assert 0 < found["mfu"] < 2
        assert found["seconds"] > 0


def test_the_command_says_that_there_is_no_gpu_and_loads_no_ray(tmp_path):
    code = "import sys; sys.path.insert(0, 'jobs'); import benchmark; print(benchmark.main(sys.argv[1:]), 'ray' in sys.modules)"
    arguments = ["gpu", "--only", "machine", "--out", str(tmp_path / "g.json")]
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False"], done.stderr
    assert "torch finds no GPU here" in done.stderr
