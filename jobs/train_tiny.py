"""A recipe of `jobs/pretrain.py`: a synthetic shop, then every stage on it, each from the last one's model.

    python jobs/train_tiny.py jobs/train_tiny.toml --out runs/tiny     # the model that ships with the package, from nothing

The same command goes on where it was interrupted. OUT/personal/model is the model, OUT/pbs/model the PBS encoder; OUT/<stage> is
what `jobs/pretrain.py --stage <stage>` leaves.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.command import DEFAULT, Outcome, Output, on_cluster, parse, progress, run
from adgen.on_ray.display import print_summary
from adgen.on_ray.training.recipe import Recipe, run_recipe, ship


@dataclasses.dataclass(frozen=True)
class Command:
    """Train every stage of a recorded recipe, one after another, as jobs/pretrain.py does. The same command goes on."""

    recipe_file: Annotated[Positional[Path], arg(metavar="RECIPE.toml")]
    """The recipe; every one of its settings can be overridden below."""
    recipe: Annotated[Recipe, arg(name="")]
    ship: Path | None = None
    """Afterwards write model and PBS encoder here as they lie in the package (adgen/tiny): the model's weights in bf16."""
    output: OmitArgPrefixes[Output] = DEFAULT


def train(command: Command) -> Outcome:
    """Train the stages; a summary of each."""
    with on_cluster(ClusterSettings()), progress("steps") as bar:
        summaries = run_recipe(command.recipe, bar)
    if command.ship is not None:
        ship(command.recipe, command.ship)
    for summary in summaries:
        print_summary(f"stage {summary.stage}", summary.as_dict())
    return Outcome([summary.as_dict() for summary in summaries], command.output)


def main(arguments: list[str]) -> int:
    """Run the job; the exit code."""
    return run("train_tiny", lambda: train(parse(Command, Recipe, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
