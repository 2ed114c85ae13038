"""How fast the engine is on this machine, against its floor and against other loops. Runs anywhere, on random weights:

    python jobs/benchmark.py engine --size bench-30m --batch 4 --prompt-tokens 400 --against hf --against published
    python jobs/benchmark.py engine --size janus-pro-7b --batch 64 --prompt-tokens 1200 --against hf --against published

A step is one image token of every row of a batch. It cannot take less time than its bytes (weights, keys and values)
take over the machine's bandwidth, or its operations over its matrix rate; both are measured in the same run, the formula
is printed. The last line of stdout is one JSON object; progress goes to stderr.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from tyro.conf import arg

from adgen.errors import AdgenError
from adgen.generation.benchmark.measure import measure, settings_of
from adgen.generation.benchmark.report import as_document, row_of, table_of, terms_of
from adgen.generation.benchmark.settings import EngineBenchmarkSettings

app = tyro.extras.SubcommandApp()


@app.command(name="engine")
def engine(
    settings: Annotated[EngineBenchmarkSettings, arg(name="")],
    save: Annotated[Path | None, arg(metavar="FILE", help="write the JSON object there, too")] = None,
) -> int:
    """Pictures a second, ms a step and share of the floor, of random weights."""
    progress = Console(stderr=True)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    rows = []
    for setting in settings_of(settings):
        name = f"{setting.size} {setting.dtype}, batch {setting.batch}, prompt {setting.prompt_tokens}"
        found = measure(
            setting, settings, lambda what, name=name: progress.print(f"{name}: {what}", highlight=False, soft_wrap=True)
        )
        rows.append(row_of(found))
        progress.print(*terms_of(rows[-1]), sep="\n", highlight=False, markup=False, soft_wrap=True)
    Console(width=max(Console().width, 150)).print(table_of(rows))  # whole numbers, in a log file too
    document = json.dumps(as_document(rows, command=shlex.join(["python", "jobs/benchmark.py", *sys.argv[1:]])))
    if save:
        save.write_text(document + "\n", encoding="utf-8")
    print(document)
    return 0


def main(arguments: list[str]) -> int:
    """Parse, measure, print; the exit code."""
    try:
        return app.cli(args=arguments, prog="benchmark.py", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    except AdgenError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
