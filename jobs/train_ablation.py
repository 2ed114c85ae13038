"""A recipe of `jobs/pretrain.py`: the models of the ablation, which says which parts of personalization earn their place.

    python jobs/train_ablation.py jobs/train_ablation.toml --out runs/ablation
    python jobs/evaluate.py proof --ablation runs/ablation

The same command goes on where it was interrupted.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import ValidationError
from rich.console import Console
from tyro.conf import Positional, arg

from adgen.config import load_settings
from adgen.errors import AdgenError, SettingsError
from adgen.on_ray.cluster import connected
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.display import RichProgress, print_summary
from adgen.on_ray.training.ablation import Ablation, run_ablation


@dataclasses.dataclass(frozen=True)
class Command:
    """Train each variant with the same budget. The same command goes on."""

    settings_file: Annotated[Positional[Path], arg(metavar="SETTINGS.toml")]
    """Start, shop and budget; every one of its settings can be overridden below."""
    ablation: Annotated[Ablation, arg(name="")]
    json: bool = False
    """Print one JSON array, a summary a variant, as the last line of stdout."""


def main(arguments: list[str]) -> int:
    """Parse, train, report; the exit code."""
    console = Console(stderr=True)
    try:
        command = parse(arguments)
        with connected(ClusterSettings()), RichProgress(console, unit="steps") as progress:
            summaries = run_ablation(command.ablation, progress)
    except AdgenError as error:
        console.print(f"train_ablation: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    for summary in summaries:
        print_summary(console, summary.model, summary.as_dict())
    if command.json:
        print(json.dumps([summary.as_dict() for summary in summaries]))
    return 0


def parse(arguments: list[str]) -> Command:
    """Settings file first, then what the command line overrides."""
    file = next((Path(a) for a in arguments[:1] if not a.startswith("-")), None)
    ablation = load_settings(Ablation, file) if file else Ablation()
    try:
        return tyro.cli(Command, args=arguments, default=Command(file or tyro.MISSING, ablation))
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors(include_url=False))
        raise SettingsError(f"{file} and the command line together: {problems}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
