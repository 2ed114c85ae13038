"""What the `main()` of every job has in common: settings file and overrides in, progress, tables and errors on stderr, one JSON
line on stdout, an exit code."""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

import tyro
from pydantic import ValidationError
from tyro.conf import arg

from adgen.config import Settings, load_settings
from adgen.creatives.storage import S3Access
from adgen.errors import AdgenError, RunError, SettingsError, printable
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.display import RichProgress, error_console
from adgen.terminal import plain_streams


@dataclass(frozen=True)
class Output:
    """Where the record of what a job did goes."""

    json: bool = False
    """Print the record as one line of JSON, the last of stdout."""
    save: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write the JSON there, too."""


DEFAULT = Output()


class Outcome(NamedTuple):
    """What a job did."""

    record: Any
    """As JSON holds it."""
    output: Output = DEFAULT
    succeeded: bool = True


def run(name: str, job: Callable[[], Outcome], *, always_print: bool = False) -> int:
    """Do the job and print its record where that was asked for or is its purpose; the exit code. An error that is not a fault of
    ours is one red sentence on stderr."""
    try:
        with plain_streams():
            outcome = job()
            _hand_over(outcome, always_print)
    except (AdgenError, ValidationError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print_error(name, error)
        return 1
    return 0 if outcome.succeeded else 1


class Commands:
    """A job of several commands that measure: `JOB COMMAND [SETTINGS.toml] [OVERRIDES]`. Each returns an Outcome, whose record is
    printed wherever stdout is no terminal, too."""

    def __init__(self) -> None:
        self.acts: dict[str, Callable[..., Outcome]] = {}

    def add(self, act: Callable[..., Outcome]) -> Callable[..., Outcome]:
        """A decorator: the function is the command of its name."""
        self.acts[act.__name__] = act
        return act

    def run(self, name: str, description: str | None, arguments: list[str]) -> int:
        """Do what the command line says; the exit code."""
        return run(name, lambda: self._do(f"{name}.py", description, arguments), always_print=not sys.stdout.isatty())

    def _do(self, prog: str, description: str | None, arguments: list[str]) -> Outcome:
        acts, app = dict(self.acts), tyro.extras.SubcommandApp()
        command, file = [*arguments, "", ""][:2]
        if command in acts and file and not file.startswith("-"):
            acts[command], arguments = _with_file(acts[command], file), [command, *arguments[2:]]
        for known, act in acts.items():
            app.command(name=known)(act)
        return app.cli(prog=prog, description=description, config=(tyro.conf.FlagCreatePairsOff,), args=arguments)


def _with_file(act: Callable[..., Outcome], file: str) -> Callable[..., Outcome]:
    """The command with the file's settings as its defaults; what it requires and the file does not say stays required."""
    signature = inspect.signature(act)
    kind = get_args(signature.parameters["settings"].annotation)[0]
    default = load_settings(kind, file, missing=tyro.MISSING)
    parameters = [each.replace(default=default) if name == "settings" else each for name, each in signature.parameters.items()]

    @functools.wraps(act)
    def with_file(*given: Any, **named: Any) -> Outcome:
        return act(*given, **named)

    with_file.__signature__ = signature.replace(parameters=sorted(parameters, key=lambda each: each.default is not each.empty))
    return with_file


def _hand_over(outcome: Outcome, always_print: bool = False) -> None:
    if outcome.output.json or always_print:
        print(json.dumps(outcome.record, ensure_ascii=False), flush=True)  # first: hours of work outlive a full disk
    if outcome.output.save is not None:
        _save(outcome.record, outcome.output.save)


def _save(record: Any, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"save: {file}: {error}; the JSON stands on stdout") from None


def print_error(name: str, error: Exception) -> None:
    """One red sentence on stderr."""
    error_console().print(f"{name}: {sentence_of(error)}", style="red", markup=False, highlight=False, soft_wrap=True)


def sentence_of(error: Exception) -> str:
    """An error in one line; of settings that are wrong, each field with what is wrong with it."""
    if isinstance(error, ValidationError):
        problems = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors(include_url=False)]
        return "; ".join(f"{field}: {message}" if field else message for field, message in problems)
    return printable(" ".join(str(error).split()))


C = TypeVar("C")


def parse(command: type[C], kind: type[Settings], arguments: list[str]) -> C:
    """A job's command line: `command(file, settings)`, the settings those of the file in the first argument, overridden by the
    arguments after it. SettingsError: the file, or what both say together."""
    file = next((Path(first) for first in arguments[:1] if not first.startswith("-")), None)
    settings = load_settings(kind, file) if file else kind()
    try:
        return tyro.cli(command, args=arguments, default=command(file or tyro.MISSING, settings))
    except ValidationError as error:
        raise SettingsError(f"{file} and the command line together: {sentence_of(error)}") from None


@contextmanager
def on_cluster(
    cluster: ClusterSettings,
    s3: S3Access | None = None,
    output: Output = DEFAULT,
    record_of_loss: Callable[[RunError], Any] = lambda error: {"error": str(error)},
) -> Iterator[None]:
    """Ray for the duration of the block, with stdout kept for the record: libraries print there what they like.

    Where Ray dies in the middle, calls of it hang, and soon it ends this process without a word. So the process ends at once, with
    the record of the loss; what was done is in the store.
    """
    from adgen.on_ray.cluster import connected  # the engine's benchmark needs no Ray

    stdout = sys.stdout

    def end(error: RunError) -> None:
        try:
            print_error(Path(sys.argv[0]).stem, error)
            sys.stdout = stdout
            _hand_over(Outcome(record_of_loss(error), output))
        finally:
            os._exit(1)

    with redirect_stdout(sys.stderr), connected(cluster, s3, end):
        yield


@contextmanager
def progress(unit: str = "pairs") -> Iterator[RichProgress]:
    """A bar on stderr, with stdout kept for the record."""
    with redirect_stdout(sys.stderr), RichProgress(error_console(), unit=unit) as bar:
        yield bar
