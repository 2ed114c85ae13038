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
from adgen.on_ray.training.job import pretrain
from adgen.on_ray.training.settings import PretrainSettings


@dataclasses.dataclass(frozen=True)
class Command:
    """Train one stage: tables of products, histories and references in, a model directory out. The same command resumes."""

    settings_file: Annotated[Positional[Path], arg(metavar="SETTINGS.toml")]
    """Settings; every one of them can be overridden below."""
    settings: Annotated[PretrainSettings, arg(name="")]
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def main(arguments: list[str]) -> int:
    """Parse, train, report; the exit code."""
    console = Console(stderr=True)
    try:
        command = parse(arguments)
        command.settings.require()
        with connected(ClusterSettings(address=command.settings.address)), RichProgress(console, unit="steps") as progress:
            summary = pretrain(command.settings, progress)
    except AdgenError as error:
        console.print(f"pretrain: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    print_summary(console, f"stage {summary.stage}", summary.as_dict())
    if command.json:
        print(json.dumps(summary.as_dict()))
    return 0


def parse(arguments: list[str]) -> Command:
    """Settings file first, then what the command line overrides."""
    file = next((Path(a) for a in arguments[:1] if not a.startswith("-")), None)
    settings = load_settings(PretrainSettings, file) if file else PretrainSettings()
    try:
        return tyro.cli(Command, args=arguments, default=Command(file or tyro.MISSING, settings))
    except ValidationError as error:
        problems = "; ".join(problem["msg"] for problem in error.errors(include_url=False))
        raise SettingsError(f"{file} and the command line together: {problems}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
