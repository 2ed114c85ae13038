"""Numbers for people and programs, from what was measured."""

import platform
import statistics
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from rich.table import Table

import adgen
from adgen.generation.benchmark.machine import Machine, device_name
from adgen.generation.benchmark.measure import Measurement, typical_machine
from adgen.generation.benchmark.requests import bench_prompter, bench_requests
from adgen.generation.benchmark.roofline import FORMULA, Roofline, Workload, per_thousand, picture_work, roofline
from adgen.generation.benchmark.settings import RooflineSettings
from adgen.generation.benchmark.sizes import size
from adgen.generation.engine_settings import ENGINE_VERSION

PHASES = ("prefill", "title", "picture", "vq")
COLUMNS = {
    "size": "size",
    "dtype": "dtype",
    "batch": "batch",
    "prompt_tokens": "prompt",
    "pictures_per_second": "pictures/s",
    "ms_per_step": "ms a step",
    "roofline_ms_per_step": "roofline ms",
    "share_of_roofline": "share of roofline",
    "share_of_roofline_overall": "overall",
    "achieved_gb_s": "GB/s",
    "peak_bytes": "peak bytes",
    "ratio_hf": "x hf",
    "ratio_published": "x published",
}


def row_of(found: Measurement) -> dict[str, Any]:
    """One setting's numbers, ready for JSON; medians over the pairs."""
    machine = typical_machine(found.machines)
    least = roofline(found.workload, machine)
    # A batch that did not fit runs as several smaller ones.
    num_batches = found.setting.batch / found.num_slots
    seconds = {phase: statistics.median(getattr(ours, phase) for ours in found.ours) for phase in PHASES}
    total = statistics.median(ours.seconds for ours in found.ours)
    ms_per_step = statistics.median(1000 * ours.picture / ours.picture_steps for ours in found.ours)
    row = {
        **_what(found),
        "pictures_per_second": found.setting.batch / total,
        **per_thousand(total / found.setting.batch),
        "ms_per_step": ms_per_step,
        "roofline_ms_per_step": least.ms_per_step,
        "share_of_roofline": least.ms_per_step / ms_per_step,
        "share_of_roofline_overall": least.seconds * num_batches / total,
        **_work(found, machine, ms_per_step),
        "peak_bytes": found.peak_bytes,
        "seconds": seconds | {"total": total},
        "shares": {phase: value / sum(seconds.values()) for phase, value in seconds.items()},
        "roofline_seconds": _roofline_seconds(least, num_batches),
        "title_steps": found.ours[0].title_steps,
        "picture_steps": found.ours[0].picture_steps,
        "pairs": len(found.ours),
    }
    for name in ("hf", "published"):
        row |= _ratio(found, name)
    return row | _under_old_names(row) | _extras(found) | _surroundings(found, machine)


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The rows side by side."""
    table = Table(box=None, pad_edge=False)
    for title in COLUMNS.values():
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in COLUMNS))
    return table


def terms_of(row: dict[str, Any]) -> list[str]:
    """The formula, and what each of its terms came to."""
    work, least = row["bytes_by_term"], row["roofline_seconds"]
    lines = [f"{row['size']} {row['dtype']}, batch {row['batch']}, prompt {row['prompt_tokens']}:", f"  {FORMULA}"]
    lines += [f"  {value / 1e6:12.3f} MB  {name}" for name, value in work.items()]
    lines += [f"  {row['bytes_per_step'] / 1e6:12.3f} MB  a step, {row['flops_per_step'] / 1e9:.3f} GFLOP"]
    machine = row["machine"]
    lines.append(
        f"  machine: read {machine['read_gb_s']:.1f}, copy {machine['copy_gb_s']:.1f}, triad {machine['triad_gb_s']:.1f} GB/s, "
        f"{machine['gflops']:.0f} GFLOP/s; the roofline uses the read speed; image steps are bound by {row['roofline_bound']}"
    )
    phases = (f"{p} {row['seconds'][p]:.2f} s ({row['shares'][p]:.0%}, roofline {least[p]:.2f})" for p in PHASES)
    return [*lines, f"  a batch: {', '.join(phases)}"]


def paper_of(settings: RooflineSettings) -> dict[str, Any]:
    """Bytes and operations of a mean image step by what they are for, and what prompts share. Nothing is measured: sizes alone."""
    config = size(settings.size)
    prompter, dtype = bench_prompter(config), getattr(torch, settings.dtype)
    request = bench_requests(config, prompter, 1, settings.prompt_tokens)[0]
    load = Workload(
        config=config,
        element_bytes=dtype.itemsize,
        batch=settings.batch,
        prompt_tokens=settings.prompt_tokens,
        negative_tokens=len(prompter.negative_prompt()),
        history_items=len(request.history_titles),
        cache_bytes=None if settings.cache_dtype == "same" else getattr(torch, settings.cache_dtype).itemsize,
    )
    work, steps = picture_work(load), config.image.tokens_per_picture
    prompt = prompter.picture_prompt(request.facts, "")
    return {
        "bytes_by_term": {name: round(value / steps) for name, value in work.bytes.items()},
        "bytes_per_step": round(sum(work.bytes.values()) / steps),
        "flops_by_term": {name: round(value / steps) for name, value in work.flops.items()},
        "flops_per_step": round(sum(work.flops.values()) / steps),
        "bytes_formula": FORMULA,
        "negative_tokens": load.negative_tokens,
        "history_items": load.history_items,
        "prompt_shared_by_variants": len(prompt),
        "prompt_shared_by_users_of_a_product": next((i for i, slot in enumerate(prompt.slots) if slot >= 0), len(prompt)),
    }


def table_of_paper(paper: dict[str, Any]) -> Table:
    """Its terms, each with its share."""
    table = Table("a step", "", "share", box=None, pad_edge=False)
    for kind, unit in (("bytes", "MB"), ("flops", "MFLOP")):
        total = paper[f"{kind}_per_step"]
        for name, value in (*paper[f"{kind}_by_term"].items(), (f"all {kind}", total)):
            table.add_row(name, f"{value / 1e6:,.1f} {unit}", f"{value / total:.1%}")
    return table


def as_document(rows: list[dict[str, Any]], **about: Any) -> dict[str, Any]:
    """One object: the first row's numbers, and where there are more rows, all of them as `sweep`."""
    return rows[0] | about | ({"sweep": rows} if len(rows) > 1 else {})


def _under_old_names(row: dict[str, Any]) -> dict[str, Any]:
    """The keys of version 0.1.0, which said `floor`: kept until 0.3.0."""
    return {name.replace("roofline", "floor"): value for name, value in row.items() if "roofline" in name}


def _what(found: Measurement) -> dict[str, Any]:
    setting, load = found.setting, found.workload
    return {
        "size": setting.size,
        "model": load.config.name,
        "layers": load.config.decoder.num_layers,
        "device": device_name(found.device),
        "device_type": found.device.type,
        "dtype": setting.dtype,
        "batch": setting.batch,
        "num_slots": found.num_slots,
        "prompt_tokens": setting.prompt_tokens,
        "negative_tokens": load.negative_tokens,
        "image_tokens": load.config.image.tokens_per_picture,
        "history_items": load.history_items,
        "title_tokens": load.title_tokens,
    }


def _work(found: Measurement, machine: Machine, ms_per_step: float) -> dict[str, Any]:
    """Bytes and operations of a mean image step, and what was achieved of them."""
    work, steps = picture_work(found.workload), found.workload.config.image.tokens_per_picture
    moved, flops = sum(work.bytes.values()) / steps, sum(work.flops.values()) / steps
    return {
        "bytes_per_step": round(moved),
        "flops_per_step": round(flops),
        "bytes_by_term": {name: value / steps for name, value in work.bytes.items()},
        "bytes_formula": FORMULA,
        "roofline_bound": work.bound(machine),
        "achieved_gb_s": moved / ms_per_step / 1e6,
        "achieved_gflops": flops / ms_per_step / 1e6,
    }


def _ratio(found: Measurement, name: str) -> dict[str, Any]:
    """How many times as long the baseline's step takes: of each pair, their median and lower quartile. null: not measured."""
    theirs = found.step_seconds.get(name)
    if not theirs:
        return {f"ratio_{name}": None}
    # A step of the whole batch, however many slots it took.
    steps = found.workload.config.image.tokens_per_picture
    ours = (each.picture / steps for each in found.ours)
    ratios = [slow / fast for slow, fast in zip(theirs, ours, strict=True)]
    return {
        f"ratio_{name}": statistics.median(ratios),
        f"ratio_{name}_lower_quartile": statistics.quantiles(ratios, n=4)[0] if len(ratios) > 1 else ratios[0],
        f"ratio_{name}_pairs": [round(ratio, 3) for ratio in ratios],
        f"{name}_ms_per_step": 1000 * statistics.median(theirs),
        f"{name}_batch": found.baselines[name].num_rows,
    }


def _extras(found: Measurement) -> dict[str, Any]:
    """A baseline's whole batch, reckoned from its parts: its steps were not all run."""
    steps, extras = found.workload.config.image.tokens_per_picture, {}
    if hf := found.baselines.get("hf"):
        extras["hf_prefill_seconds"] = statistics.median(hf.prefill_seconds) * found.setting.batch / hf.num_rows
        extras["hf_note"] = "token ids of the same length; no history, no foreground, no title: this favours it"
    if published := found.baselines.get("published"):
        times = found.setting.batch / published.num_rows
        before = published.before_picture.seconds * times
        extras["published_foreground_ms_per_step"] = 1000 * times * statistics.median(published.foreground_seconds)
        extras["published_before_picture_seconds"] = before
        extras["published_batch_seconds"] = before + steps * statistics.median(found.step_seconds["published"])
    return extras


def _surroundings(found: Measurement, machine: Machine) -> dict[str, Any]:
    versions = {"adgen": adgen.__version__, "torch": torch.__version__, "transformers": version("transformers")}
    return {
        "machine": asdict(machine) | {"roofline_bandwidth": "read_gb_s", "floor_bandwidth": "read_gb_s"},
        "gflops": found.gflops,
        "threads": torch.get_num_threads(),
        "engine": found.engine.model_dump(mode="json"),
        "engine_version": ENGINE_VERSION,
        "warm_up_seconds": found.warm_up_seconds,
        "versions": versions | {"python": platform.python_version()},
    }


def _roofline_seconds(least: Roofline, num_batches: float) -> dict[str, float]:
    phases = {phase: getattr(least, phase) * num_batches for phase in PHASES}
    return phases | {"total": sum(phases.values())}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0%}" if name.startswith("share") else f"{value:.3g}" if value < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
