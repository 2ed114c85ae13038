"""Refresh a campaign: tables of products, histories and pairs in, published creatives out.

    python jobs/refresh.py jobs/refresh.toml --inputs demo/shop --store demo/store --campaign spring --model demo/model

Run the same command again and it goes on where it stopped. Settings come from the TOML file; any of them can be
overridden, as in `--finish.width 768`. Exit code 0 only when the run was published.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional, arg

from adgen.config import load_settings
from adgen.errors import AdgenError, SettingsError
from adgen.on_ray.cluster import connected
from adgen.on_ray.display import RichProgress, print_summary
from adgen.on_ray.dry_run import forecast
from adgen.on_ray.refresh import refresh
from adgen.on_ray.settings import RefreshSettings

REQUIRED = ("inputs", "store", "campaign", "model")


@dataclasses.dataclass(frozen=True)
class Command:
    """Refresh a campaign: tables of products, histories and pairs in, published creatives out. The same command resumes."""

    settings_file: Annotated[Positional[Path], arg(metavar="SETTINGS.toml")]
    """Settings; every one of them can be overridden below."""
    settings: Annotated[RefreshSettings, arg(name="")]
    json: bool = False
    """Print one JSON object as the last line of stdout."""
    dry_run: bool = False
    """Plan only: print pairs to do and carried, expected time and cost; nothing is generated or published."""


def main(arguments: list[str]) -> int:
    """Parse, run, report; the exit code."""
    console = Console(stderr=True)
    try:
        command = parse(arguments)
        with connected(command.settings.cluster):
            if command.dry_run:
                report(console, "dry run", dataclasses.asdict(forecast(command.settings)), command.json)
                return 0
            with RichProgress(console) as progress:
                summary = refresh(command.settings, progress)
    except AdgenError as error:
        console.print(f"refresh: {error}", style="red", markup=False, highlight=False)
        return 1
    report(console, f"run {summary.run_id}", summary.as_dict(), command.json)
    return 0 if summary.published else 1


def parse(arguments: list[str]) -> Command:
    """Settings file first, then what the command line overrides. SettingsError names what is missing."""
    file = next((Path(a) for a in arguments[:1] if not a.startswith("-")), None)
    settings = load_settings(RefreshSettings, file) if file else RefreshSettings()
    command = tyro.cli(Command, args=arguments, default=Command(file or tyro.MISSING, settings))
    missing = [f"--{name}" for name in REQUIRED if not getattr(command.settings, name)]
    if missing:
        raise SettingsError(f"{file}: neither the file nor the command line gives {', '.join(missing)}")
    return command


def report(console: Console, title: str, values: dict, as_json: bool) -> None:
    """A table for people; for programs one JSON object on stdout."""
    print_summary(console, title, values)
    if as_json:
        print(json.dumps(values))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
