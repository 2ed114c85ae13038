"""Everything that an hour on a GPU should answer, in one command that goes on where it stopped. Needs no Ray.

Each measurement is a process of its own, so that one that crashes or runs out of memory costs no other; what it found is in the
file before the next begins. A measurement that does not fit the time that is left is left for the next call.
"""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

import adgen
from adgen.generation.benchmark.machine import device_name, measure_machine, peak_bytes, reset_peak
from adgen.generation.benchmark.requests import bench_prompter, bench_requests
from adgen.generation.benchmark.sizes import random_model, size
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots_per_device import bytes_per_slot, weight_bytes
from adgen.generation.timings import now
from adgen.on_ray.training.throughput import peak_flops
from adgen.progress import Progress
from adgen.training.batches import LanguageCollator
from adgen.training.language import LanguageTask
from adgen.training.settings import TrainingSettings
from adgen.training.step import TorchStep
from adgen.training.trainable import choose_trainable

ROOT = Path(__file__).parents[3]
Device = Literal["cuda", "cpu"]
_JOB = str(ROOT / "jobs" / "benchmark.py")
_TITLE_TOKENS = 16
_WARM_STEPS, _STEPS = 2, 5


class Measurement(NamedTuple):
    """One question."""

    name: str
    command: list[str]
    """Its last line on stdout is JSON; of pytest, what it says."""
    seconds: int
    """What it takes on an H200, with room: it is not begun where less is left."""


def measurements(sizes: tuple[str, ...], device: Device, batches: tuple[int, ...], prompts: tuple[int, ...]) -> list[Measurement]:
    """All of them, those first that the others stand on."""
    small, large = sizes[0], sizes[-1]
    own = [sys.executable, "-m", __spec__.name if __spec__ else __name__]
    engine = [sys.executable, _JOB, "engine", "--device", device, "--pairs", "2", "--json"]
    found = [
        Measurement("machine", [*own, "machine", device], 30),
        Measurement("tests/gpu", [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "gpu")], 120),
        *(Measurement(f"check-device {name}", [*own, "check", device, name], 60) for name in sizes),
        *(Measurement(f"memory {name}", [*own, "memory", device, name], 60) for name in sizes),
        Measurement(f"training {small}", [*own, "training", device, small], 60),
    ]
    against = ["--against", "hf", "--against", "published"]
    for name in (large, *sizes[:-1]):
        for batch in batches:
            for prompt in prompts:
                asked = ["--size", name, "--batch", str(batch), "--prompt-tokens", str(prompt)]
                found.append(Measurement(f"engine {name} batch {batch} prompt {prompt}", [*engine, *asked, *against], 150))
    asked = ["--size", large, "--batch", str(batches[0]), "--prompt-tokens", str(prompts[0]), "--device", device, "--json"]
    found.append(Measurement(f"options {large}", [sys.executable, _JOB, "options", *asked], 240))
    return found


def run(chosen: list[Measurement], out: Path, minutes: float, device: Device, progress: Progress) -> dict[str, Any]:
    """Do what `out` does not hold yet, for so many minutes; the document, which `out` holds too."""
    deadline = time.monotonic() + 60 * minutes
    document = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"benchmark": "gpu", "measurements": {}}
    document |= {"device": device_name(torch.device(device)), "versions": {"adgen": adgen.__version__, "torch": torch.__version__}}
    done = document["measurements"]
    progress.phase("measure", len(chosen))
    for each in chosen:
        left = deadline - time.monotonic()
        if done.get(each.name, {}).get("rc") == 0:
            progress.advance(1, "there already")
        elif each.seconds <= left:
            done[each.name] = _measured(each, left)
            progress.advance(1, f"{each.name}: {done[each.name]['seconds']:.0f} s")
        document["left_out"] = [other.name for other in chosen if done.get(other.name, {}).get("rc") != 0]
        _write(out, document)
    return document


def _measured(each: Measurement, left: float) -> dict[str, Any]:
    started = time.monotonic()
    try:
        ended = subprocess.run(each.command, cwd=ROOT, capture_output=True, text=True, timeout=left)
        rc, said, trouble = ended.returncode, ended.stdout, ended.stderr
    except subprocess.TimeoutExpired:
        rc, said, trouble = 124, "", "it took longer than the time that was left"
    spent = {"rc": rc, "seconds": round(time.monotonic() - started, 1), "command": " ".join(each.command)}
    last = (said.strip().splitlines() or [""])[-1]
    try:
        return spent | {"found": json.loads(last)}
    except ValueError:
        return spent | {"found": last} | ({"error": trouble[-2000:]} if rc else {})


def _write(out: Path, document: dict[str, Any]) -> None:
    part = out.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(out)


# -- measurements that no other command makes, each in a process of its own ------------------------------------------------


def machine(device: Device) -> dict[str, Any]:
    """Bandwidth and matrix rates."""
    where = torch.device(device)
    return {str(dtype).removeprefix("torch."): asdict(measure_machine(where, dtype)) for dtype in (torch.float32, torch.bfloat16)}


def check(device: Device, name: str) -> dict[str, Any]:
    """Every kernel against the plain path, at a size's shapes."""
    where, config = torch.device(device), size(name)
    settings = EngineSettings()
    model = random_model(config, where, settings.torch_dtype(where))
    engine = Engine(model, bench_prompter(config), settings, _sampling(), device=where, check=True)
    return {"switched_off": sorted(engine.switched_off), "findings": [asdict(each) for each in engine.findings]}


def memory(device: Device, name: str) -> dict[str, Any]:
    """What adgen/generation/slots_per_device.py foresaw, and what a batch of that many slots really took."""
    where, config = torch.device(device), size(name)
    settings, prompter = EngineSettings(), bench_prompter(config)
    dtype = settings.torch_dtype(where)
    reset_peak(where)
    engine = Engine(random_model(config, where, dtype), prompter, settings, _sampling(), device=where, check=False)
    planned = engine.num_slots
    engine.generate(bench_requests(config, prompter, planned, 1200 if device == "cuda" else 200))
    slot = bytes_per_slot(config, engine._capacity, dtype, settings.torch_cache_dtype(where))
    return {
        "planned_slots": planned,
        "slots": engine.num_slots,
        "planned_bytes": weight_bytes(config, dtype) + planned * slot,
        "peak_bytes": peak_bytes(where),
        "total_bytes": torch.cuda.get_device_properties(where).total_memory if device == "cuda" else None,
    }


def training(device: Device, name: str) -> dict[str, Any]:
    """Seconds and MFU of a step of the released recipe, its memory, on one device."""
    where, config = torch.device(device), size(name)
    settings = TrainingSettings(stage="personal", trainable={"preset": "released"})
    prompter = bench_prompter(config)
    model = random_model(config, where, torch.float32)
    choose_trainable(model, "personal", settings.trainable)
    model.decoder.gradient_checkpointing = True
    task = LanguageTask(model, prompter, settings).train()
    step = TorchStep(task, settings.optimizer, 1, device, bf16=device == "cuda")
    rows = [_example(number, config) for number in range(4)]
    batch = {n: t.to(where) for n, t in LanguageCollator(prompter, config, settings)(rows, [0] * len(rows)).items()}
    flops = task.step_flops(batch)
    reset_peak(where)
    for number in range(_WARM_STEPS + _STEPS):
        if number == _WARM_STEPS:
            started = now(where)
        loss, _ = step.forward(batch)
        step.backward(loss)
        step.apply(1e-6)
    seconds = (now(where) - started) / _STEPS
    mfu = flops / seconds / peak_flops(device)
    return {"micro_batch": len(rows), "seconds": seconds, "flops": flops, "mfu": mfu, "peak_bytes": peak_bytes(where)}


def _sampling() -> SamplingSettings:
    return SamplingSettings(max_title_tokens=_TITLE_TOKENS)


def _example(number: int, config: Any) -> dict[str, Any]:
    """A row as `adgen.training.example_files` holds it; what it shows is noise."""
    noise = np.random.default_rng(number)
    side, picture = config.foreground.condition_size, io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(picture, "PNG")

    def codes(count: int) -> bytes:
        return noise.integers(0, config.image.codebook_size, count).astype("<u2").tobytes()

    clicks = [
        {"product": f"p{i}", "close": 0.5, "title": "red mug", "codes": codes(config.image.tokens_per_history_picture)}
        for i in range(config.history_items)
    ]
    title = {"product_title": "blue lamp of steel", "selling_points": ["warm light"], "titles": ["a lamp for you"]}
    return title | {
        "number": number,
        "clicks": clicks,
        "codes": codes(config.image.tokens_per_picture),
        "condition": picture.getvalue(),
    }


OWN: dict[str, Callable[..., dict[str, Any]]] = {"machine": machine, "check": check, "memory": memory, "training": training}

if __name__ == "__main__":
    print(json.dumps(OWN[sys.argv[1]](*sys.argv[2:])))
