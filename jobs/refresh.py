"""Refresh a campaign: tables of products, histories and pairs in, published creatives out.

    python jobs/refresh.py jobs/refresh.toml --inputs demo/shop --store demo/store --campaign spring --model demo/model

Run the same command again and it goes on where it stopped. Settings come from the TOML file; any of them can be
overridden, as in `--finish.width 768`. `--campaign spring summer` refreshes one after the other, and one that fails does
not stop the next. Exit code 0 only when every run was published.
"""

import dataclasses
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import Positional, arg

from adgen.config import load_settings
from adgen.errors import AdgenError, SettingsError
from adgen.on_ray.cluster import connected
from adgen.on_ray.display import RichProgress, print_summary
from adgen.on_ray.refresh.dry_run import forecast
from adgen.on_ray.refresh.job import refresh
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.shipped import shipped_model

REQUIRED = ("inputs", "store", "model")


@dataclasses.dataclass(frozen=True)
class Command:
    """Refresh a campaign: tables of products, histories and pairs in, published creatives out. The same command resumes."""

    settings_file: Annotated[Positional[Path], arg(metavar="SETTINGS.toml")]
    """Settings; every one of them can be overridden below."""
    settings: Annotated[RefreshSettings, arg(name="")]
    campaign: tuple[str, ...] = ()
    """Name of the campaign, or names of several."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""
    dry_run: bool = False
    """Plan only: print pairs to do and carried, expected time and cost; nothing is generated or published."""


def main(arguments: list[str]) -> int:
    """Parse, run, report; the exit code."""
    console = Console(stderr=True)
    try:
        command = parse(arguments)
        # Libraries print to stdout what they like; there our one JSON object stands alone.
        with redirect_stdout(sys.stderr), connected(command.settings.cluster, command.settings.s3):
            outcomes = {campaign: attempt(command, campaign, console) for campaign in command.campaign}
    except AdgenError as error:
        print_error(console, "refresh", error)
        return 1
    succeeded = all(outcome.get("published", True) for outcome in outcomes.values())  # a forecast publishes nothing
    if command.json:
        together = {"campaigns": outcomes} | ({} if command.dry_run else {"published": succeeded})
        print(json.dumps(together if len(outcomes) > 1 else outcomes[command.campaign[0]]))
    return 0 if succeeded else 1


def attempt(command: Command, campaign: str, console: Console) -> dict[str, Any]:
    """Refresh one campaign and print what came of it for people; the record for programs."""
    settings = command.settings.of(campaign)
    try:
        if command.dry_run:
            made = dataclasses.asdict(forecast(settings))
        else:
            with RichProgress(console) as progress:
                made = refresh(settings, progress).as_dict()
    except AdgenError as error:
        print_error(console, campaign, error)
        return {"published": False, "error": str(error)}
    except Exception as error:  # a fault of ours: it must not cost the other campaigns their night
        console.print_exception()
        return {"published": False, "error": f"{type(error).__name__}: {error}"}
    print_summary(console, f"{campaign}: " + ("dry run" if command.dry_run else f"run {made['run_id']}"), made)
    return made


def print_error(console: Console, what: str, error: AdgenError) -> None:
    """An error for people."""
    console.print(f"{what}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def parse(arguments: list[str]) -> Command:
    """Settings file first, then what the command line overrides. SettingsError names what is missing or twice."""
    file = next((Path(a) for a in arguments[:1] if not a.startswith("-")), None)
    settings = load_settings(RefreshSettings, file) if file else RefreshSettings()
    campaigns = (settings.campaign,) if settings.campaign else ()
    command = tyro.cli(Command, args=arguments, default=Command(file or tyro.MISSING, settings, campaigns))
    if command.settings.model is None:
        command = dataclasses.replace(command, settings=command.settings.model_copy(update={"model": shipped_model()}))
    missing = [f"--{name}" for name in REQUIRED if not getattr(command.settings, name)]
    missing += [] if command.campaign else ["--campaign"]
    if missing:
        raise SettingsError(f"{file}: neither the file nor the command line gives {', '.join(missing)}")
    if len(set(command.campaign)) < len(command.campaign):
        raise SettingsError(f"--campaign {' '.join(command.campaign)}: names a campaign twice")
    return command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
