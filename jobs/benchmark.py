"""Speed, part by part: `engine` measures the model on this machine, `roofline` says on paper what a step of it moves and computes,
`options` measures its lossy options, `gpu` all that a new GPU is asked, `data` everything around it, `waiting` what an engine waits
for that, `serve` the service on demand.

    python jobs/benchmark.py engine --size bench-30m --batch 4 --prompt-tokens 400 --against hf --against published
    python jobs/benchmark.py engine --size janus-pro-7b --batch 64 --prompt-tokens 1200 --against hf --against published
    python jobs/benchmark.py roofline --size janus-pro-7b --batch 64 --prompt-tokens 1200
    python jobs/benchmark.py options --size bench-30m
    python jobs/benchmark.py gpu --minutes 10
    python jobs/benchmark.py data --pairs 10000 200000
    python jobs/benchmark.py waiting --seconds 0.5 0.1
    python jobs/benchmark.py serve --clients 1 8 32

`engine` runs on random weights. A step is one image token of every row of a batch. It cannot take less time than its
bytes (weights, keys and values) take over the machine's bandwidth, or its operations over its matrix rate; both are
measured in the same run, and the formula is printed. A TOML file after the command's name holds its settings, and flags
override them. Progress and tables go to stderr; the last line of stdout is one JSON object (on a terminal with `--json`).
"""

import dataclasses
import json
import shlex
import sys
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from tyro.conf import OmitArgPrefixes, arg

from adgen.generation.benchmark.settings import (
    EngineBenchmarkSettings,
    GpuBenchmarkSettings,
    OptionsBenchmarkSettings,
    RooflineSettings,
)
from adgen.on_ray import command
from adgen.on_ray.benchmark.settings import DataBenchmarkSettings, ServeBenchmarkSettings, WaitingBenchmarkSettings
from adgen.on_ray.command import Outcome, progress
from adgen.on_ray.display import error_console

commands = command.Commands()
Output = OmitArgPrefixes[command.Output]
WIDTH = 150  # columns of the engine's table: whole numbers, in a log file too


@commands.add
def engine(settings: Annotated[EngineBenchmarkSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """Pictures a second, ms a step, share of the roofline, and how many times as fast as other loops."""
    import torch

    from adgen.generation.benchmark.measure import measure, settings_of
    from adgen.generation.benchmark.report import as_document, row_of, table_of, terms_of

    if settings.threads:
        torch.set_num_threads(settings.threads)
    rows, chosen = [], list(settings_of(settings))
    with progress("settings") as bar:
        bar.phase("measure", len(chosen))
        for setting in chosen:
            name = f"{setting.size} {setting.dtype}, batch {setting.batch}, prompt {setting.prompt_tokens}"
            found = measure(setting, settings, lambda what, name=name: bar.print(f"{name}: {what}"))
            rows.append(row_of(found))
            bar.print(*terms_of(rows[-1]))
            bar.advance(1)
    error_console(WIDTH).print(table_of(rows))
    return Outcome(as_document(rows, command=shlex.join(["python", "jobs/benchmark.py", *sys.argv[1:]])), output)


@commands.add
def roofline(settings: Annotated[RooflineSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """Bytes and operations of an image step from the model's sizes, and how much of a prompt variants and users share."""
    from adgen.generation.benchmark.report import paper_of, table_of_paper

    paper = paper_of(settings)
    console = error_console(WIDTH)
    console.print(paper["bytes_formula"])
    console.print(table_of_paper(paper))
    console.print(
        f"Of {settings.prompt_tokens} tokens two variants of a pair share {paper['prompt_shared_by_variants']}, "
        f"two users of a product {paper['prompt_shared_by_users_of_a_product']} (up to the first clicked title)."
    )
    return Outcome({"benchmark": "roofline"} | settings.model_dump(mode="json") | paper, output)


@commands.add
def options(settings: Annotated[OptionsBenchmarkSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """Speed of each lossy option against the plain engine, and how far it moves the distributions of image tokens."""
    import torch

    from adgen.generation.benchmark.options import measure_options

    size, device = settings.size, torch.device(settings.device)
    with progress("") as bar:
        costs = measure_options(size, settings.batch, settings.prompt_tokens, settings.pairs, device, bar.phase)
    table = Table("option", "x speed", "x speed of a picture", "distribution moved", "argmax kept")
    for cost in costs:
        speeds = (f"{cost.speed_up:.2f}", f"{cost.step_speed_up:.2f}")
        table.add_row(cost.name, *speeds, f"{cost.moved:.5f}", f"{cost.argmax_kept:.1%}")
    error_console().print(table)
    about = {"benchmark": "options"} | settings.model_dump(mode="json", exclude={"pairs"})
    return Outcome(about | {"options": [dataclasses.asdict(cost) for cost in costs]}, output)


@commands.add
def gpu(settings: Annotated[GpuBenchmarkSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """All that an hour on a GPU should answer: tests/gpu, kernels, bandwidth, slots, engine against others, training."""
    from adgen.generation.benchmark.measure import available_device
    from adgen.on_ray.benchmark.gpu import measurements, run

    available_device(EngineBenchmarkSettings(device=settings.device))
    sizes = settings.size or ("janus-pro-1b", "janus-pro-7b")
    chosen = measurements(sizes, settings.device, settings.batch or (16, 64), settings.prompt_tokens or (1200, 600))
    chosen = [each for each in chosen if not settings.only or each.name.startswith(settings.only)]
    with progress("measurements") as bar:
        document = run(chosen, settings.out, settings.minutes, settings.device, bar)
    return Outcome(document, output, not any(each["rc"] for each in document["measurements"].values()))


@commands.add
def data(settings: Annotated[DataBenchmarkSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """A whole refresh with a null generator: speed of plan and execution by core, memory of each kind of process."""
    from adgen.on_ray.benchmark.refresh import as_record, marginal_rates, run_benchmark

    with progress("refreshes") as bar:

        def done(run: Any) -> None:
            bar.print(json.dumps(as_record([run])[0]))
            bar.advance(1)

        bar.phase("measure", len(settings.pairs) + (settings.finished_pairs > 0))
        measured = run_benchmark(**settings.model_dump(), each=done)
    runs, marginal = as_record(measured), marginal_rates(measured)
    print_runs(error_console(), runs, marginal)
    about = {"benchmark": "data", "products": settings.products, "pairs_per_shard": settings.pairs_per_shard}
    return Outcome(about | {"runs": runs, "marginal": marginal}, output)


@commands.add
def waiting(settings: Annotated[WaitingBenchmarkSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """How much longer than its own batches an engine of a known time takes, from its first shard to its last."""
    from adgen.on_ray.benchmark.waiting import run_benchmark

    with progress("pairs") as bar:
        found = run_benchmark(settings, bar)
    table = Table("seconds of a batch", "batches", "engine busy", "wall over engine")
    for row in found:
        table.add_row(*(str(value) for value in row.values()))
    error_console().print(table)
    return Outcome({"benchmark": "waiting"} | settings.model_dump(mode="json", exclude={"seconds"}) | {"runs": found}, output)


@commands.add
def serve(settings: Annotated[ServeBenchmarkSettings, arg(name="")], output: Output = command.DEFAULT) -> Outcome:
    """Creatives a second on request beside the engine's own, and reads beside an empty Serve deployment, on loopback."""
    from adgen.on_ray.benchmark.serving import run_benchmark

    with progress("") as bar:
        found = run_benchmark(settings, bar)
    for what, measured in found.items():
        rows = {name: row for name, row in measured.items() if isinstance(row, dict)}
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        table = Table(what, *(name.replace("_", " ") for name in names))
        for name, row in rows.items():
            table.add_row(name, *(str(row.get(column, "-")) for column in names))
        error_console(WIDTH).print(table)
    return Outcome(
        {"benchmark": "serve"} | settings.model_dump(mode="json", include={"rounds", "requests", "reads"}) | found, output
    )


def print_runs(console: Console, runs: list[dict], marginal: dict[str, dict[str, float]]) -> None:
    """One column for each run."""
    table = Table("", *(f"{run['pairs']:,} pairs, {run['finishing']}" for run in runs), title="refresh with a null generator")
    for kind in ("seconds", "user_seconds", "system_seconds"):
        for phase in runs[0][kind]:
            table.add_row(f"{phase}: {kind.replace('_', ' ')}", *(f"{run[kind][phase]:,}" for run in runs))
    for phase in runs[0]["pairs_per_core_second"]:
        table.add_row(f"{phase}: pairs/s/core", *(f"{run['pairs_per_core_second'][phase]:,}" for run in runs))
    for kind in sorted({kind for run in runs for kind in run["cpu_seconds_by_kind"]}):
        table.add_row(f"{kind}: CPU seconds", *(f"{run['cpu_seconds_by_kind'].get(kind, 0):,}" for run in runs))
    for kind in sorted({kind for run in runs for kind in run["peak_rss_mb"]}):
        peaks = ((run["peak_rss_mb"].get(kind), run["peak_own_mb"].get(kind)) for run in runs)
        table.add_row(f"{kind}: peak MB (not shared)", *("-" if rss is None else f"{rss:,} ({own:,})" for rss, own in peaks))
    console.print(table)
    for phase, rates in marginal.items():
        both, user = rates["cpu_seconds"], rates["user_seconds"]
        console.print(f"{phase}: {both:,} pairs/s/core ({user:,} without the kernel's time), starting up left out")


def main(arguments: list[str]) -> int:
    """Run a command; the exit code."""
    return commands.run("benchmark", __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
