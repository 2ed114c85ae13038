"""Train one stage of a model: tables of products, histories and references in, a model directory out.

    python jobs/pretrain.py jobs/pretrain.toml --stage tokenizer --inputs demo/shop --model tiny --out runs/tokenizer
    python jobs/pretrain.py jobs/pretrain.toml --stage general --inputs demo/shop --model runs/tokenizer/model --out runs/general
    python jobs/pretrain.py jobs/pretrain.toml --stage personal --inputs demo/shop --model runs/general/model --out runs/personal
    python jobs/pretrain.py jobs/pretrain.toml --stage pbs --inputs demo/shop --out runs/pbs

A Janus-Pro directory as --model needs --dinov2 DIRECTORY beside it: it has no weights for seeing products.
Run the same command again and it goes on from the last checkpoint. OUT/model is what `jobs/refresh.py --model` takes.
Settings come from the TOML file; any of them can be overridden, as in `--optimizer.learning-rate 1e-4`. Exit code 0 only
when the model was written.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.command import DEFAULT, Outcome, Output, on_cluster, parse, progress, run
from adgen.on_ray.display import print_summary
from adgen.on_ray.training.job import pretrain
from adgen.on_ray.training.settings import PretrainSettings


@dataclasses.dataclass(frozen=True)
class Command:
    """Train one stage: tables of products, histories and references in, a model directory out. The same command resumes."""

    settings_file: Annotated[Positional[Path], arg(metavar="SETTINGS.toml")]
    """Settings; every one of them can be overridden below."""
    settings: Annotated[PretrainSettings, arg(name="")]
    output: OmitArgPrefixes[Output] = DEFAULT


def train(command: Command) -> Outcome:
    """Train the stage; its summary."""
    command.settings.require()
    with on_cluster(ClusterSettings(address=command.settings.address), output=command.output), progress("steps") as bar:
        summary = pretrain(command.settings, bar)
    print_summary(f"stage {summary.stage}", summary.as_dict())
    return Outcome(summary.as_dict(), command.output)


def main(arguments: list[str]) -> int:
    """Run the job; the exit code."""
    return run("pretrain", lambda: train(parse(Command, PretrainSettings, arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
