"""A recipe of `jobs/pretrain.py`: a synthetic shop, then every stage on it, each from the last one's model.

    python jobs/train_tiny.py jobs/train_tiny.toml --out runs/tiny     # the model that ships with the package, from nothing

The same command goes on where it was interrupted. OUT/personal/model is the model, OUT/pbs/model the PBS encoder; OUT/<stage> is
what `jobs/pretrain.py --stage <stage>` leaves.
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
from adgen.on_ray.training.recipe import Recipe, run_recipe, ship


@dataclasses.dataclass(frozen=True)
class Command:
    """Train every stage of a recorded recipe, one after another, as jobs/pretrain.py does. The same command goes on."""

    recipe_file: Annotated[Positional[Path], arg(metavar="RECIPE.toml")]
    """The recipe; every one of its settings can be overridden below."""
    recipe: Annotated[Recipe, arg(name="")]
    ship: Path | None = None
    """Afterwards write model and PBS encoder here as they lie in the package (adgen/tiny): the model's weights in bf16."""
    json: bool = False
    """Print one JSON array, a summary a stage, as the last line of stdout."""


def main(arguments: list[str]) -> int:
    """Parse, train, report; the exit code."""
    console = Console(stderr=True)
    try:
        command = parse(arguments)
        with connected(ClusterSettings()), RichProgress(console, unit="steps") as progress:
            summaries = run_recipe(command.recipe, progress)
        if command.ship is not None:
            ship(command.recipe, command.ship)
    except AdgenError as error:
        console.print(f"train_tiny: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    for summary in summaries:
        print_summary(console, f"stage {summary.stage}", summary.as_dict())
    if command.json:
        print(json.dumps([summary.as_dict() for summary in summaries]))
    return 0


def parse(arguments: list[str]) -> Command:
    """Recipe file first, then what the command line overrides."""
    file = next((Path(a) for a in arguments[:1] if not a.startswith("-")), None)
    recipe = load_settings(Recipe, file) if file else Recipe()
    try:
        return tyro.cli(Command, args=arguments, default=Command(file or tyro.MISSING, recipe))
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors(include_url=False))
        raise SettingsError(f"{file} and the command line together: {problems}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
