"""jobs/benchmark.py engine, from its pieces to the JSON line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adgen.errors import SettingsError
from adgen.generation.benchmark import measure as measuring
from adgen.generation.benchmark.baselines import BASELINES, Batch
from adgen.generation.benchmark.machine import Machine, measure_machine, peak_bytes, reset_peak
from adgen.generation.benchmark.measure import Setting, measure, settings_of
from adgen.generation.benchmark.report import COLUMNS, as_document, row_of, table_of, terms_of
from adgen.generation.benchmark.requests import bench_prompter, bench_requests
from adgen.generation.benchmark.settings import EngineBenchmarkSettings
from adgen.generation.benchmark.sizes import SIZES, random_model, sharing_copy, size
from adgen.generation.generate import generate
from adgen.generation.sampling_settings import SamplingSettings

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
JOB = Path(__file__).parents[1] / "jobs" / "benchmark.py"
QUICK = EngineBenchmarkSettings(
    size=("tiny",), batch=(2,), prompt_tokens=(200,), pairs=2, baseline_steps=2, title_tokens=2, layers=2,
    against=("hf", "published"),
)  # fmt: skip
PROMISED = (  # what two machines, or a machine's forecast, are compared by
    "pictures_per_second", "ms_per_step", "roofline_ms_per_step", "share_of_roofline", "peak_bytes", "ratio_hf", "ratio_published",
    "device", "dtype", "batch", "prompt_tokens",
)  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("prompt_tokens", [300, 401, 1200])
def test_prompts_have_exactly_the_length_that_was_asked_for(name, prompt_tokens):
    config = size(name)
    prompter = bench_prompter(config)
    requests = bench_requests(config, prompter, 3, prompt_tokens)
    assert {len(prompter.picture_prompt(r.facts, "")) for r in requests} == {prompt_tokens}
    assert len(requests[0].history_titles) == len(requests[0].history_codes) <= config.history_items
    assert not torch.equal(requests[0].condition, requests[1].condition), "a shared product would be computed once"
    if prompt_tokens == 1200:
        assert len(requests[0].history_titles) == config.history_items


def test_a_prompt_shorter_than_the_template_is_refused():
    config = size("tiny")
    with pytest.raises(SettingsError, match="the template alone takes"):
        bench_requests(config, bench_prompter(config), 1, 10)


def test_an_unknown_size_is_refused():
    with pytest.raises(SettingsError, match="size 'huge' is unknown; known are bench-30m, tiny"):
        size("huge")


def test_random_weights_give_different_pictures_and_finite_ones():
    config = size("tiny", num_layers=2)
    model, prompter = random_model(config, CPU, torch.float32), bench_prompter(config)
    assert len(model.decoder.layers) == 2
    requests = bench_requests(config, prompter, 2, 200)
    some, others = generate(model, prompter, requests, SamplingSettings(max_title_tokens=2))
    assert not torch.equal(some.codes, others.codes)
    assert len(set(some.codes.tolist())) > 8
    assert some.picture.float().std() > 0
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_sharing_copy_holds_the_same_tensors_in_other_modules():
    model = random_model(size("tiny"), CPU, torch.bfloat16)
    copy = sharing_copy(model)
    pairs = zip(model.named_parameters(), copy.named_parameters(), strict=True)
    assert all(a == b and p.data_ptr() == q.data_ptr() and q.dtype == torch.bfloat16 for (a, p), (b, q) in pairs)
    assert copy.decoder.layers[0] is not model.decoder.layers[0]


@pytest.fixture(scope="module")
def machine() -> Machine:
    """What this machine does in fp32, measured once; a bf16 product takes it minutes where it has no instruction for one."""
    return measure_machine(CPU, torch.float32)


def test_the_machines_speeds_are_those_of_memory_and_not_of_a_cache(machine):
    assert 1 < machine.copy_gb_s < 1000
    assert 1 < machine.read_gb_s < 1000
    assert machine.gflops > 1


def test_peak_memory_is_counted_from_the_reset_on():
    big = torch.ones(2**26)  # 256 MB
    del big
    reset_peak(CPU)
    before = peak_bytes(CPU)
    held = torch.ones(2**25)
    assert peak_bytes(CPU) - before == pytest.approx(held.nbytes, rel=0.2)


def test_every_combination_is_measured():
    asked = EngineBenchmarkSettings(size=("tiny", "bench-30m"), batch=(1, 4), prompt_tokens=(400, 1200), device="cpu")
    found = list(settings_of(asked))
    assert len(set(found)) == 8
    assert found[1] == Setting("tiny", 1, 1200, "float32")
    assert list(settings_of(EngineBenchmarkSettings(device="cpu"))) == [Setting("bench-30m", 4, 400, "float32")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(SettingsError, match="device cuda: torch finds no GPU"):
        measure(Setting("tiny", 1, 200, "float32"), EngineBenchmarkSettings(device="cuda"))


def test_the_numbers_of_a_row_agree_with_each_other(machine, monkeypatch):
    monkeypatch.setattr(measuring, "measure_machine", lambda device, dtype: machine)
    monkeypatch.setattr(measuring, "measure_gflops", lambda device, dtype: machine.gflops)
    said = []
    found = measure(Setting("tiny", 2, 200, "bfloat16"), QUICK, said.append)
    row = row_of(found)
    assert row["pairs"] == len(row["ratio_hf_pairs"]) == len(row["ratio_published_pairs"]) == 2
    assert row["share_of_roofline"] == pytest.approx(row["roofline_ms_per_step"] / row["ms_per_step"])
    old = ("floor_ms_per_step", "share_of_floor", "share_of_floor_overall", "floor_seconds", "floor_bound")
    assert all(row[name] == row[name.replace("floor", "roofline")] for name in old), "until 0.3.0"
    assert row["bytes_per_step"] == pytest.approx(sum(row["bytes_by_term"].values()), rel=1e-6)
    assert row["achieved_gb_s"] == pytest.approx(row["bytes_per_step"] / row["ms_per_step"] / 1e6)
    # The roofline in ms is bytes over bandwidth or operations over the matrix rate, both as reported beside it.
    by_bytes = row["bytes_per_step"] / row["machine"]["read_gb_s"] / 1e6
    by_flops = row["flops_per_step"] / row["machine"]["gflops"] / 1e6
    assert row["roofline_ms_per_step"] == pytest.approx(max(by_bytes, by_flops), rel=1e-3)
    # Two pairs: the median lies between the two ratios, each a baseline's step over ours.
    ratios = [theirs / (ours.picture / 64) for theirs, ours in zip(found.step_seconds["hf"], found.ours, strict=True)]
    assert min(ratios) <= row["ratio_hf"] <= max(ratios)
    assert row["pictures_per_second"] == pytest.approx(2 / row["seconds"]["total"])
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert (row["title_steps"], row["picture_steps"]) == (2, 64)
    assert row["layers"] == 2
    assert row["engine"]["num_slots"] == row["num_slots"] == 2
    assert row["published_batch_seconds"] > 64 * row["published_ms_per_step"] / 1000
    assert [line.partition(" ms")[0].rpartition(" ")[0] for line in said if "published" in line] == [
        "before: published", "pair 1 of 2: published", "pair 2 of 2: published",
    ]  # fmt: skip
    assert len(table_of([row]).columns) == len(COLUMNS)
    assert any("keys and values written" in line for line in terms_of(row))
    assert as_document([row]) == row
    assert as_document([row, row], command="x") == row | {"command": "x", "sweep": [row, row]}


def test_a_baseline_that_does_not_fit_runs_a_smaller_batch(monkeypatch):
    config = size("tiny", 2)
    model, prompter = random_model(config, CPU, torch.float32), bench_prompter(config)
    requests = bench_requests(config, prompter, 4, 200)
    baseline = BASELINES["hf"](Batch(model, prompter, SamplingSettings(), requests, QUICK))
    measured = baseline._step_seconds

    def memory_for_one(some):
        if len(some) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measured(some)

    monkeypatch.setattr(baseline, "_step_seconds", memory_for_one)
    assert baseline.step_seconds() > 0
    assert baseline.num_rows == 1


def test_the_command_prints_one_json_object_last_and_loads_no_ray(tmp_path):
    saved = tmp_path / "speed.json"
    flags = "--size tiny --layers 2 --batch 1 --prompt-tokens 200 --pairs 1 --baseline-steps 2 --title-tokens 2 --threads 1"
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'ray', 'boto3', 'deepspeed'} & set(sys.modules)"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(JOB),
        "engine",
        *flags.split(),
        "--engine.no-deepspeed",
        "--against",
        "hf",
        "--save",
        str(saved),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(saved.read_text()) == document
    assert set(PROMISED) <= document.keys()
    assert document["ratio_hf"] > 0
    assert document["ratio_published"] is None
    assert document["command"].startswith("python jobs/benchmark.py engine --size tiny")
    assert "pair 1 of 1: hf" in done.stderr


def test_a_wrong_size_ends_with_one_line_and_exit_code_1():
    command = [sys.executable, str(JOB), "engine", "--size", "huge", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("benchmark: size 'huge' is unknown")
