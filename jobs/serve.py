"""Serve a campaign over HTTP: published creatives are read, others are made on request.

    adgen token new tokens.json --name shop --scope read --scope generate
    python jobs/serve.py jobs/serve.toml --inputs demo/shop --store demo/store --campaign demo --auth.tokens tokens.json

Ends with SIGTERM or Ctrl-C, when accepted requests are answered. SIGHUP reads the command line's files again; where settings
changed, engines are replaced, the new ones first: so a model of another path comes in. Where that fails, all stays as it was. Exit
code 0 when it was ended, 1 when it could not serve.
"""

import dataclasses
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

from pydantic import ValidationError
from tyro.conf import OmitArgPrefixes, Positional, arg

from adgen.errors import AdgenError
from adgen.on_ray.command import DEFAULT, Outcome, Output, on_cluster, parse, print_error, run
from adgen.on_ray.display import error_console
from adgen.on_ray.serving.settings import ServeSettings


@dataclasses.dataclass(frozen=True)
class Command:
    """Serve a campaign: published creatives are read, others are made on request."""

    settings_file: Annotated[Positional[Path], arg(metavar="SETTINGS.toml")]
    """Settings; every one of them can be overridden below."""
    settings: Annotated[ServeSettings, arg(name="")]
    no_auth: bool = False
    """Ask for no token; only where http.host is this machine alone."""
    output: OmitArgPrefixes[Output] = DEFAULT


def read(arguments: list[str]) -> Command:
    """The command with its files and defaults. SettingsError names what is missing or unsafe."""
    command = parse(Command, ServeSettings, arguments)
    return dataclasses.replace(command, settings=command.settings.complete(command.no_auth))


def replaced(command: Command, arguments: list[str]) -> Command:
    """The command as its files say now, in effect; the one before where that could not be."""
    from adgen.on_ray.serving.application import start

    try:
        fresh = read(arguments)
        start(fresh.settings, fresh.no_auth)
    except (AdgenError, ValidationError) as error:
        print_error("serve", error)
        start(command.settings, command.no_auth)
        error_console().print("the service goes on with the settings of before")
        return command
    error_console().print("settings were read again" + (fresh.settings.http != command.settings.http) * "; http needs a new start")
    return fresh


def serve_until_ended(arguments: list[str]) -> Outcome:
    """Serve until a signal says that it is enough."""
    command = read(arguments)
    ended, again = threading.Event(), threading.Event()
    wake = threading.Event()
    with on_cluster(command.settings.cluster, command.settings.s3, command.output):
        from adgen.on_ray.serving.application import start, stop

        start(command.settings, command.no_auth)
        for number, event in ((signal.SIGTERM, ended), (signal.SIGINT, ended), (signal.SIGHUP, again)):  # Ray sets its own before
            signal.signal(number, lambda *_, event=event: (event.set(), wake.set()))
        settings, console = command.settings, error_console()
        console.print(f"serving campaign {settings.campaign} on http://{settings.http.host}:{settings.http.port}", highlight=False)
        while not ended.is_set():
            wake.wait()
            wake.clear()
            if again.is_set() and not ended.is_set():
                again.clear()
                command = replaced(command, arguments)
        console.print("ending: accepted requests are answered first")
        stop(command.settings.load.timeout_seconds)
    return Outcome({"served": settings.campaign}, command.output)


def main(arguments: list[str]) -> int:
    """Run the service; the exit code."""
    return run("serve", lambda: serve_until_ended(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
