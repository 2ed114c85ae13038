"""A training step under Ray Train against the same module in a plain torch loop, in turns; prints, asserts no time."""

import statistics
import struct
import time
from pathlib import Path

import pytest
import torch
from support.progress import Silent
from tensorboardX.proto.event_pb2 import Event

from adgen.on_ray.training.examples import prepare_examples
from adgen.on_ray.training.job import pretrain
from adgen.on_ray.training.settings import PretrainSettings
from adgen.on_ray.training.source import Source
from adgen.on_ray.training.worker_setup import fresh_task
from adgen.shipped import shipped_model
from adgen.shop.synthetic.synth import synthesize
from adgen.training.optimizers import make_optimizer

STEPS, WARM, ROUNDS = 40, 10, 3


@pytest.mark.long
def test_training_keeps_up_with_a_plain_loop(ray_cluster, tmp_path, capsys):
    synthesize(tmp_path / "shop", num_users=200, num_products=200, num_pairs=400, seed=5, split="train")
    ours, theirs, waits, mfus = [], [], [], []
    for number in range(ROUNDS):
        settings = run_settings(tmp_path, tmp_path / f"run{number}")
        theirs += plain_seconds(settings)
        assert pretrain(settings, Silent()).steps == STEPS
        found = scalars(tmp_path / f"run{number}" / "tensorboard")
        ours += found["seconds"][WARM:]
        waits += found["data_wait"][WARM:]
        mfus += found["mfu"][WARM:]
    ratio = statistics.median(theirs) / statistics.median(ours)
    with capsys.disabled():
        print(
            f"\nunder Ray Train {statistics.median(ours):.3f} s a step, plain loop {statistics.median(theirs):.3f} s: "
            f"{ratio:.2f} times its tokens/s; MFU {statistics.median(mfus):.2f}; "
            f"waits for data {statistics.mean(waits):.2%} of a step"
        )
    assert len(ours) == len(theirs) == ROUNDS * (STEPS - WARM)


def run_settings(folder: Path, out: Path) -> PretrainSettings:
    return PretrainSettings(
        stage="personal", inputs=str(folder / "shop"), model=str(shipped_model()), out=str(out), cache=str(folder / "cache"),
        steps=STEPS, batch=16, device="cpu", evaluation={"examples": 0, "samples": 0}, checkpoint={"every": STEPS},
        workers={"threads": 1},
    )  # fmt: skip


def plain_seconds(settings: PretrainSettings) -> list[float]:
    """Each step's, after the warm ones: forward, backward, clip, optimizer, with all batches in memory beforehand."""
    start = settings.model
    prepared = prepare_examples(settings, start)
    source = Source(settings, start, prepared.examples, prepared.backgrounds)
    reader, collator = source.reader(), source.collator()
    order = source.order(reader)
    drawn = [order.at(step * settings.batch, settings.batch) for step in range(STEPS)]
    batches = [collator(reader.rows([example for _, example in some]), [epoch for epoch, _ in some]) for some in drawn]
    task = fresh_task(source).train()
    optimizer = make_optimizer(task, settings.optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before, seconds = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for batch in batches:
        began = time.monotonic()
        loss, _ = task(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.monotonic() - began)
    torch.set_num_threads(before)
    return seconds[WARM:]


def scalars(folder: Path) -> dict[str, list[float]]:
    """By name, in the order of their steps."""
    found: dict[str, list[float]] = {}
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:  # TFRecord: length, checksum, event, checksum
            (length,) = struct.unpack("<Q", data[:8])
            for value in Event.FromString(data[12 : 12 + length]).summary.value:
                found.setdefault(value.tag, []).append(value.simple_value)
            data = data[16 + length :]
    return found
