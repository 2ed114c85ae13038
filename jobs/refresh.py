"""Refresh a campaign: tables of products, histories and pairs in, published creatives out.

    python jobs/refresh.py jobs/refresh.toml --inputs demo/shop --store demo/store --campaign demo

Run the same command again and it goes on where it stopped. Settings come from the TOML file; any of them can be
overridden, as in `--finish.width 768`. `--campaign spring summer` refreshes one after the other, and one that fails does
not stop the next. Exit code 0 only when every run was published.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from adgen.errors import AdgenError, SettingsError
from adgen.on_ray.command import DEFAULT, Outcome, Output, on_cluster, parse, print_error, progress, run
from adgen.on_ray.display import error_console, print_summary
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
    """Name of the campaign, or names of several; default that of the settings."""
    dry_run: bool = False
    """Plan only: print pairs to do and carried, expected time and cost; nothing is generated or published."""
    output: OmitArgPrefixes[Output] = DEFAULT


def refresh_all(command: Command) -> Outcome:
    """Refresh each campaign. One: its record; several: a record of each by name, and whether all were published."""
    records: dict[str, dict[str, Any]] = {}
    settings, output = command.settings, command.output
    with on_cluster(settings.cluster, settings.s3, output, lambda error: when_lost(command, records, error)):
        for campaign in command.campaign:
            records[campaign] = attempt(command, campaign)
    return Outcome(together(command, records), output, succeeded(records))


def together(command: Command, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One campaign's record; of several a record of each by name, and whether all were published."""
    if len(records) == 1:
        return next(iter(records.values()))
    return {"campaigns": records} | ({} if command.dry_run else {"published": succeeded(records)})


def succeeded(records: dict[str, dict[str, Any]]) -> bool:
    """Whether every campaign was published; a forecast publishes nothing."""
    return all(record.get("published", True) for record in records.values())


def when_lost(command: Command, done: dict[str, dict[str, Any]], error: AdgenError) -> dict[str, Any]:
    """What was done when Ray died in the middle of the first of the other campaigns; the rest was not tried."""
    left = [campaign for campaign in command.campaign if campaign not in done]
    not_tried = left[1:]
    errors = {campaign: f"not tried: {error}" if campaign in not_tried else str(error) for campaign in left}
    told = {campaign: {"published": False, "error": said} for campaign, said in errors.items()}
    return together(command, done | told) | ({"not_tried": not_tried} if not_tried else {})


def attempt(command: Command, campaign: str) -> dict[str, Any]:
    """Refresh one campaign and print what came of it for people; the record for programs."""
    settings = command.settings.of(campaign)
    try:
        if command.dry_run:
            made = dataclasses.asdict(forecast(settings))
        else:
            with progress() as bar:
                made = refresh(settings, bar).as_dict()
    except AdgenError as error:
        print_error(campaign, error)
        return {"published": False, "error": str(error)}
    except Exception as error:  # a fault of ours: it must not cost the other campaigns their night
        error_console().print_exception()
        return {"published": False, "error": f"{type(error).__name__}: {error}"}
    print_summary(f"{campaign}: " + ("dry run" if command.dry_run else f"run {made['run_id']}"), made)
    return made


def complete(command: Command) -> Command:
    """The command with defaults that depend on the settings. SettingsError names what is missing or twice."""
    settings = command.settings.model_copy(update={"model": command.settings.model or shipped_model()})
    campaigns = command.campaign or ((settings.campaign,) if settings.campaign else ())
    missing = [f"--{name}" for name in REQUIRED if not getattr(settings, name)]
    missing += [] if campaigns else ["--campaign"]
    if missing:
        raise SettingsError(f"{command.settings_file}: neither the file nor the command line gives {', '.join(missing)}")
    if len(set(campaigns)) < len(campaigns):
        raise SettingsError(f"--campaign {' '.join(campaigns)}: names a campaign twice")
    return dataclasses.replace(command, settings=settings, campaign=campaigns)


def main(arguments: list[str]) -> int:
    """Run the job; the exit code."""
    return run("refresh", lambda: refresh_all(complete(parse(Command, RefreshSettings, arguments))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
