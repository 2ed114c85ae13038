"""How fast this is, by part: `data` is everything around the engine.

    python jobs/benchmark.py data --pairs 10000 200000

A table goes to stderr; the last line of stdout is one JSON object.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from adgen.errors import AdgenError

app = tyro.extras.SubcommandApp()


@app.command
def data(
    pairs: Annotated[tuple[int, ...], arg(help="sizes, each a refresh of its own without pictures")] = (10_000, 200_000),
    finished_pairs: Annotated[int, arg(help="pairs of one more refresh, with pictures pasted, judged and encoded; 0: none")] = 2000,
    side: Annotated[int, arg(help="pixels of those pictures")] = 512,
    products: Annotated[int, arg(help="products of the synthetic shop")] = 2000,
    pairs_per_shard: Annotated[int, arg(help="pairs of a shard")] = 256,
    save: Annotated[Path | None, arg(help="file to write the JSON to, too")] = None,
) -> dict:
    """A whole refresh with a null generator: speed of plan and execution by core, memory of each kind of process."""
    from adgen.on_ray.data_benchmark import as_record, marginal_rates, run_benchmark

    console = Console(stderr=True)
    measured = run_benchmark(
        pairs, finished_pairs, side, products, pairs_per_shard, each=lambda run: console.print(json.dumps(as_record([run])[0]))
    )
    runs, marginal = as_record(measured), marginal_rates(measured)
    print_runs(console, runs, marginal)
    record = {"benchmark": "data", "products": products, "pairs_per_shard": pairs_per_shard, "runs": runs, "marginal": marginal}
    if save is not None:
        save.write_text(json.dumps(record, indent=1) + "\n")
    return record


def print_runs(console: Console, runs: list[dict], marginal: dict[str, dict[str, float]]) -> None:
    """A column a run."""
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
    try:
        record = app.cli(args=arguments, description=__doc__)
    except AdgenError as error:
        Console(stderr=True).print(f"benchmark: {error}", style="red", markup=False, highlight=False)
        return 1
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
