"""A recipe of `jobs/pretrain.py`: the models of the ablation, which says which parts of personalization earn their place.

    python jobs/train_ablation.py jobs/train_ablation.toml --out runs/ablation
    python jobs/evaluate.py proof --ablation runs/ablation

The same command goes on where it was interrupted.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.command import DEFAULT, Outcome, Output, on_cluster, parse, progress, run
from adgen.on_ray.display import print_summary
from adgen.on_ray.training.ablation import Ablation, run_ablation


@dataclasses.dataclass(frozen=True)
class Command:
    """Train each variant with the same budget. The same command goes on."""

    settings_file: Annotated[Positional[Path], arg(metavar="SETTINGS.toml")]
    """Start, shop and budget; every one of its settings can be overridden below."""
    ablation: Annotated[Ablation, arg(name="")]
    output: OmitArgPrefixes[Output] = DEFAULT


def train(command: Command) -> Outcome:
    """Train the variants; a summary of each."""
    with on_cluster(ClusterSettings()), progress("steps") as bar:
        summaries = run_ablation(command.ablation, bar)
    for summary in summaries:
        print_summary(summary.model, summary.as_dict())
    return Outcome([summary.as_dict() for summary in summaries], command.output)


def main(arguments: list[str]) -> int:
    """Run the job; the exit code."""
    return run("train_ablation", lambda: train(parse(Command, Ablation, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
