"""The step over two workers: the same losses as one worker without DeepSpeed, whatever ZeRO shards, and after a resume.

Two processes on gloo, without Ray; all cases in one start of the two, since starting costs more than training.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.processes import start_ranks
from support.steps import BATCH, RATE, SAVED_AFTER, SETTINGS, STEPS, fresh_task, join_ranks, micro_batch, run
from support.tensor_bytes import reachable_bytes, tensor_bytes

from adgen.errors import ModelError, RunError, SettingsError
from adgen.training.cost import checkpoint_bytes, sharded_bytes
from adgen.training.deepspeed_files import TAG, UNIVERSAL, make_universal
from adgen.training.deepspeed_step import DeepSpeedStep, deepspeed_config, read_deepspeed_file
from adgen.training.language import LanguageTask
from adgen.training.step import TorchStep
from adgen.training.task import Task

pytestmark = pytest.mark.slow

IN_BF16 = 0.02  # relative: what rounding to 8 bits comes to after some steps
ROOT = Path(__file__).parents[1]
SMALL_BUCKET = 100_000  # elements
NEEDED_ALONE = (("fp32", 3), ("bf16", 1))  # whose checkpoints one worker goes on with


def of(kind: str, *quick: int):
    """A test's cases: each stage of ZeRO; those that are not quick are long tests."""
    stages = [
        pytest.param((kind, zero), id=f"{kind}-{zero}", marks=[] if zero in quick else pytest.mark.long) for zero in (1, 2, 3)
    ]
    return pytest.mark.parametrize("case", stages)


def two_workers(rank: int, folder: str, cases: set[tuple[str, int]]) -> None:
    """Each case (of fp32, bf16 or bytes, and a stage of ZeRO) from the start, and again from the checkpoint in its middle."""
    join_ranks(rank, 2, f"{folder}/two")
    found = {}
    for kind, zero in sorted(cases):
        if kind == "bytes":
            found[f"bytes{zero}"] = bytes_in_bf16(zero, rank)
        else:
            made = (in_bf16 if kind == "bf16" else in_fp32)(zero, rank, Path(folder))
            found |= {f"{name}{zero}": value for name, value in made.items()}
    if rank == 0:
        (Path(folder) / "losses.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def in_fp32(zero: int, rank: int, folder: Path) -> dict:
    """As in bf16, a micro-batch a step."""
    config = deepspeed_config(None, zero, 2, 1, 1.0, False)
    step = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, config)
    losses = run(step, 0, SAVED_AFTER, rank, 2)
    step.save(folder / f"fp32zero{zero}")
    dist.barrier()
    losses += run(step, SAVED_AFTER, STEPS, rank, 2)
    with step.whole_task(fresh_task) as whole:
        exported = checksum(whole) if rank == 0 else 0.0
    again = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, config)
    again.load(folder / f"fp32zero{zero}")
    resumed = run(again, SAVED_AFTER, STEPS, rank, 2)
    return {"fp32_": losses, "fp32_resumed": resumed, "fp32_export": exported, "fp32_nonfinite": nonfinite(again, rank)}


def in_bf16(zero: int, rank: int, folder: Path) -> dict:
    """Two accumulated micro-batches a step; a checkpoint in the middle; the export, and a step with non-finite gradients."""
    config = deepspeed_config(None, zero, 1, 2, 1.0, True)
    step = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, config)
    losses = run(step, 0, SAVED_AFTER, rank, 2, accumulation=2)
    step.save(folder / f"bf16zero{zero}")
    dist.barrier()
    losses += run(step, SAVED_AFTER, STEPS, rank, 2, accumulation=2)
    with step.whole_task(fresh_task, exact=True) as whole:
        exported = compared(whole) if rank == 0 else {}
    with step.whole_task(fresh_task) as whole:
        seen = str(whole.model.dtype) if rank == 0 else ""
    again = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, config)
    again.load(folder / f"bf16zero{zero}")
    resumed = run(again, SAVED_AFTER, STEPS, rank, 2, accumulation=2)
    return {"bf16_": losses, "bf16_resumed": resumed, "bf16_export": exported, "bf16_seen": seen,
            "bf16_nonfinite": nonfinite(again, rank)}  # fmt: skip


def bytes_in_bf16(zero: int, rank: int) -> int:
    """Of this worker's tensors, when the gradients of its second step are there."""
    small = {"reduce_bucket_size": SMALL_BUCKET, "stage3_prefetch_bucket_size": 0} | dict.fromkeys(
        ("stage3_param_persistence_threshold", "stage3_max_live_parameters"), 0
    )
    config = deepspeed_config({"zero_optimization": small}, zero, 1, 2, 1.0, True)
    step = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, config)
    run(step, 0, 1, rank, 2, accumulation=2)
    for turn in range(2):
        loss, _ = step.forward(micro_batch(1, turn * 2 + rank, 4))
        step.backward(loss)
        del loss
    return reachable_bytes(step.engine)


def compared(whole: LanguageTask) -> dict[str, float]:
    """An export beside its start: the largest change of what stands still, and the share of what moves that bf16 could not hold."""
    start = dict(fresh_task().named_parameters())
    still = max(float((p - start[n]).abs().max()) for n, p in whole.named_parameters() if not start[n].requires_grad)
    moved = torch.cat([p.detach().flatten() for n, p in whole.named_parameters() if start[n].requires_grad])
    return {
        "still": still,
        "beyond_bf16": float((moved.bfloat16().float() != moved).float().mean()),
        "checksum": checksum(whole),
        "fp32": float(all(p.dtype == torch.float32 for p in whole.parameters())),
    }


def nonfinite(step: DeepSpeedStep, rank: int) -> dict:
    """A step whose gradients are no numbers on the second worker alone."""
    from deepspeed.utils import safe_get_full_fp32_param

    moving = [parameter for parameter in step.task.parameters() if parameter.requires_grad]
    before = [safe_get_full_fp32_param(parameter).clone() for parameter in moving]
    accumulation = step.engine.gradient_accumulation_steps()
    for turn in range(accumulation):
        loss, _ = step.forward(micro_batch(0, turn * 2 + rank, 2 * accumulation))
        if rank == 1:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        step.backward(loss)
    try:
        step.apply(RATE)
        said = "nothing"
    except RunError as error:
        said = str(error)
    after = [safe_get_full_fp32_param(parameter) for parameter in moving]
    return {"said": said, "moved": not all(map(torch.equal, before, after))}


def one_worker(rank: int, folder: str) -> None:
    """Goes on with two workers' checkpoints, by the universal form; two or four micro-batches make a step. Then what it says of a
    checkpoint with an object in it."""
    join_ranks(0, 1, f"{folder}/one")
    found = {}
    for zero, bf16 in ((3, False), (1, True)):
        name = f"{'bf16' if bf16 else 'fp32'}zero{zero}"
        (Path(folder) / name / f"{UNIVERSAL}.part").mkdir()  # as a conversion that was killed leaves it
        make_universal(Path(folder) / name, zero)
        accumulation = 4 if bf16 else 2
        config = deepspeed_config(None, zero, BATCH // accumulation, accumulation, 1.0, bf16)
        step = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, config, universal=True)
        step.load(Path(folder) / name)
        found[name] = run(step, SAVED_AFTER, STEPS, accumulation=accumulation)
    step = DeepSpeedStep(fresh_task(), SETTINGS.optimizer, deepspeed_config(None, 1, 4, 1, 1.0, False))
    with pytest.raises(ModelError) as refused:
        step.load(Path(folder) / "foreign")
    found["refused"] = str(refused.value)
    (Path(folder) / "alone.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def checksum(task: Task) -> float:
    return float(sum(parameter.detach().double().square().sum() for parameter in task.parameters()))


@pytest.fixture(scope="module")
def plain() -> tuple[list[float], float]:
    """Losses and a checksum of the weights, without DeepSpeed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    step = TorchStep(fresh_task(), SETTINGS.optimizer, accumulation=1)
    losses = run(step, 0, STEPS)
    torch.set_num_threads(before)
    return losses, checksum(step.task)


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory) -> Path:
    """Of the cases that tests of this session ask for, all in one start."""
    folder = tmp_path_factory.mktemp("ranks")
    found = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    cases = {spec.params["case"] for spec in found if spec and "case" in spec.params} | set(NEEDED_ALONE)
    start_ranks(two_workers, 2, str(folder), cases)
    return folder


@pytest.fixture(scope="module")
def sharded(folder) -> dict:
    return json.loads((folder / "losses.json").read_text())


@of("fp32", 3)
def test_zero_gives_the_curve_of_one_plain_worker(plain, sharded, case):
    (_, zero), (losses, weights) = case, plain
    assert losses[-1] < losses[0]
    assert sharded[f"fp32_{zero}"] == pytest.approx(losses, rel=1e-4)
    assert sharded[f"fp32_export{zero}"] == pytest.approx(weights, rel=1e-5)


@of("fp32", 3)
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(sharded, case):
    _, zero = case
    assert sharded[f"fp32_resumed{zero}"] == pytest.approx(sharded[f"fp32_{zero}"][SAVED_AFTER:], rel=1e-6)


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    """What one worker found, after two had put an object that runs code beside a copy of their checkpoint."""
    shutil.copytree(folder / "bf16zero1", folder / "foreign")
    [file] = (folder / "foreign" / TAG).glob("mp_rank_00_model_states.pt")
    torch.save(torch.load(file, weights_only=False) | {"foreign": Runs(folder / "ran")}, file)
    start_ranks(one_worker, 1, str(folder))
    return json.loads((folder / "alone.json").read_text())


def test_one_worker_goes_on_with_what_two_began(alone, sharded):
    """ZeRO 2 is test_pretraining_checkpoint's."""
    assert alone["fp32zero3"] == pytest.approx(sharded["fp32_3"][SAVED_AFTER:], rel=1e-4)
    assert alone["bf16zero1"] == pytest.approx(sharded["bf16_1"][SAVED_AFTER:], rel=IN_BF16)


@of("bf16", 1)
def test_bf16_gives_the_curve_within_its_rounding_and_resumes_to_the_bit(plain, sharded, case):
    (_, zero), (losses, _) = case, plain
    assert sharded[f"bf16_{zero}"] == pytest.approx(losses, rel=IN_BF16)
    assert sharded[f"bf16_{zero}"] != pytest.approx(losses, rel=1e-5)
    assert sharded[f"bf16_resumed{zero}"] == pytest.approx(sharded[f"bf16_{zero}"][SAVED_AFTER:], rel=1e-6)
    assert sharded[f"bf16_seen{zero}"] == "torch.bfloat16"


@of("bf16", 1)
def test_a_bf16_run_exports_the_fp32_weights_and_what_stood_still_as_it_was(plain, sharded, case):
    exported = sharded[f"bf16_export{case[1]}"]
    assert exported["fp32"]
    assert exported["still"] == 0.0
    assert exported["beyond_bf16"] > 0.9
    assert exported["checksum"] == pytest.approx(plain[1], rel=1e-3)


@of("fp32", 3)
def test_gradients_that_are_no_numbers_on_one_worker_stop_all_and_move_nothing(sharded, case):
    check_stopped(sharded, case)


@of("bf16", 1)
def test_gradients_in_bf16_that_are_no_numbers_on_one_worker_stop_all_and_move_nothing(sharded, case):
    check_stopped(sharded, case)


def check_stopped(sharded: dict, case: tuple[str, int]) -> None:
    kind, zero = case
    assert "the weights are left as they were" in sharded[f"{kind}_nonfinite{zero}"]["said"]
    assert not sharded[f"{kind}_nonfinite{zero}"]["moved"]


@of("fp32", 3)
def test_a_checkpoint_has_the_bytes_of_the_formula(folder, case):
    check_written(folder, *case)


@of("bf16", 1)
def test_a_checkpoint_of_bf16_has_the_bytes_of_the_formula(folder, case):
    check_written(folder, *case)


def check_written(folder: Path, kind: str, zero: int) -> None:
    """Of its tensors: names and such are a tenth of a model this small, and nothing of one of billions."""
    files = list((folder / f"{kind}zero{zero}" / TAG).rglob("*.pt"))
    written = sum(tensor_bytes(torch.load(file, weights_only=False)) for file in files)
    assert written < sum(file.stat().st_size for file in files) < 1.2 * written
    parameters = list(fresh_task().parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    assert written == pytest.approx(checkpoint_bytes(total, trained, zero, kind == "bf16"), rel=0.01)


@of("bytes", 1)
def test_a_worker_in_bf16_has_the_bytes_of_the_formula(sharded, case):
    """What 1B and 7B are computed with. ZeRO 2 has its bucket in backward passes only."""
    _, zero = case
    parameters = list(fresh_task().parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    expected = sharded_bytes(total, trained, 2, zero, bucket=SMALL_BUCKET if zero == 3 else 0, gathered=0)
    assert sharded[f"bytes{zero}"] == pytest.approx(expected, rel=0.01)


def test_a_checkpoint_with_objects_in_it_is_not_unpickled(folder, alone):
    """DeepSpeed alone would run what somebody put in."""
    assert "holds more than data, and is not unpickled" in alone["refused"]
    with pytest.raises(ModelError, match="cannot be made universal"):
        make_universal(folder / "foreign", 1)
    assert not (folder / "ran").exists()


class Runs:
    """Pickled so that reading it makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_the_clusters_files_are_taken_with_our_batch(zero):
    config = deepspeed_config(read_deepspeed_file(ROOT / f"cluster/deepspeed/zero{zero}.json"), None, 3, 5, 0.5, True)
    assert config["zero_optimization"]["stage"] == zero
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (3, 5)
    assert config["bf16"]["enabled"]
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["gradient_clipping"] == 0.5


def test_files_that_cannot_be_taken_are_refused(tmp_path):
    path = tmp_path / "deepspeed.json"
    path.write_text('{"optimizer": {"type": "AdamW"}}')
    with pytest.raises(SettingsError, match=r"deepspeed\.json: optimizer: torch's AdamW"):
        read_deepspeed_file(path)
    path.write_text('{"fp16": {"enabled": true}}')
    with pytest.raises(SettingsError, match=r"deepspeed\.json: fp16: training is in bf16 or fp32"):
        read_deepspeed_file(path)
    path.write_text("{")
    with pytest.raises(SettingsError, match="not a DeepSpeed JSON file"):
        read_deepspeed_file(path)
    path.write_text("[1]")
    with pytest.raises(SettingsError, match=r"deepspeed\.json: not a DeepSpeed JSON file: it holds no object, but \[1\]"):
        read_deepspeed_file(path)
    path.write_text('{"zero_optimization": 2}')
    with pytest.raises(SettingsError, match=r"deepspeed\.json: zero_optimization: an object of settings, not 2"):
        read_deepspeed_file(path)
    with pytest.raises(ModelError, match="cannot be made universal"):
        make_universal(tmp_path, 1)
