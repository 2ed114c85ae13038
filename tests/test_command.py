"""The `main()` that every job has: one line of JSON on stdout, one red sentence for an error, settings file and overrides."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator
from tyro.conf import OmitArgPrefixes, Positional, arg

from adgen.config import Settings
from adgen.errors import RunError, SettingsError
from adgen.on_ray.command import DEFAULT, Commands, Outcome, Output, parse, progress, run


def test_the_json_is_printed_before_it_is_saved(tmp_path, capsys):
    target = tmp_path / "new" / "found.json"
    assert run("job", lambda: Outcome({"a": "图"}, Output(json=True, save=target))) == 0
    assert json.loads(target.read_text(encoding="utf-8")) == json.loads(capsys.readouterr().out) == {"a": "图"}
    assert run("job", lambda: Outcome({"b": 2}, Output(json=True, save=target / "below" / "a.json"))) == 1, "a file is in the way"
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"b": 2}
    assert shown.err.startswith("job: save: ")


@pytest.mark.parametrize("terminal", [False, True])
def test_the_json_is_printed_only_with_its_flag(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert run("job", lambda: Outcome({"a": 1})) == 0
    assert capsys.readouterr().out == ""
    assert run("job", lambda: Outcome({"a": 1}, Output(json=True))) == 0
    assert capsys.readouterr().out == '{"a": 1}\n'


def test_a_job_that_did_not_succeed_has_its_record_and_exit_code_1(capsys):
    assert run("job", lambda: Outcome({"published": False}, Output(json=True), succeeded=False)) == 1
    assert json.loads(capsys.readouterr().out) == {"published": False}


class Bounds(Settings):
    low: int
    high: int
    name: str = ""
    place: str = Field(default="here", min_length=1)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_job_that_measures_prints_what_it_found_to_a_pipe(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert measuring().run("job", None, ["other"]) == 0
    assert capsys.readouterr().out == ("" if terminal else '{"a": 2}\n')


def measuring() -> Commands:
    commands = Commands()

    @commands.add
    def bounds(settings: Annotated[Bounds, arg(name="")], output: OmitArgPrefixes[Output] = DEFAULT) -> Outcome:
        return Outcome(settings.model_dump(), output)

    @commands.add
    def other(output: OmitArgPrefixes[Output] = DEFAULT) -> Outcome:
        return Outcome({"a": 2}, output)

    return commands


def test_a_command_takes_a_settings_file_and_flags_override_it(tmp_path, capsys):
    file = tmp_path / "bounds.toml"
    file.write_text('high = 5\nname = "a"\n')
    assert measuring().run("job", None, ["bounds", str(file), "--low", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"low": 2, "high": 5, "name": "a", "place": "here"}
    assert measuring().run("job", None, ["bounds", str(file), "--low", "2", "--name", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "b"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("high = 'x'", "bounds.toml: high: Input should be a valid integer, unable to parse string as an integer (value 'x')"),
        ("hihg = 3", "bounds.toml: hihg: unknown key (value 3)"),
        (None, "bounds.toml: no such settings file"),
    ],
)
def test_what_is_wrong_in_a_commands_settings_file_is_named(text, sentence, tmp_path, capsys):
    file = tmp_path / "bounds.toml"
    if text is not None:
        file.write_text(text)
    assert measuring().run("job", None, ["bounds", str(file), "--low", "2"]) == 1
    assert sentence in capsys.readouterr().err


def test_what_neither_file_nor_flags_say_is_asked_for(tmp_path, capsys):
    file = tmp_path / "bounds.toml"
    file.write_text("high = 5")
    with pytest.raises(SystemExit) as ended:
        measuring().run("job", None, ["bounds", str(file)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--low" in said
    assert "--high" not in said


class Sizes(BaseModel):
    width: int = Field(gt=0)
    names: tuple[str, ...] = ()


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as found:
        Sizes.model_validate({"width": 0, "names": ["a", 3]})
    return found.value


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RunError("the disk\nis full"), "job: the disk is full"),
        (OSError(28, "No space left on device", "/store"), "job: [Errno 28] No space left on device: '/store'"),
        (OSError("\x1b[2J"), "job: \\x1b[2J"),
        (invalid(), "job: width: Input should be greater than 0; names.1: Input should be a valid string"),
    ],
)
def test_an_error_is_one_sentence(error, sentence, capsys):
    def job() -> Outcome:
        raise error

    assert run("job", job) == 1
    assert capsys.readouterr() == ("", f"{sentence}\n")


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run("job", lambda: Outcome(1 / 0))


def test_what_libraries_print_while_a_job_works_goes_to_stderr(capsys):
    with progress("things") as bar:
        bar.phase("work", 1)
        print("a library says hello")
        bar.print("one line " * 30)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "a library says hello" in shown.err
    assert "one line " * 30 in shown.err


class Both(Settings):
    low: int = 0
    high: int = 9

    @model_validator(mode="after")
    def _in_order(self) -> "Both":
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


@dataclasses.dataclass(frozen=True)
class Command:
    settings_file: Annotated[Positional[Path], arg(metavar="SETTINGS.toml")]
    settings: Annotated[Both, arg(name="")]
    output: OmitArgPrefixes[Output] = DEFAULT


def test_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "both.toml"
    file.write_text("low = 3\n")
    command = parse(Command, Both, [str(file), "--high", "5", "--json", "--save", "x.json"])
    assert (command.settings, command.settings_file) == (Both(low=3, high=5), file)
    assert command.output == Output(json=True, save=Path("x.json"))
    assert parse(Command, Both, [str(file)]).output == DEFAULT


def test_file_and_command_line_that_disagree_are_named_together(tmp_path):
    file = tmp_path / "both.toml"
    file.write_text("low = 3\n")
    with pytest.raises(SettingsError, match=r"both\.toml and the command line together: .*low 3 is above high 2"):
        parse(Command, Both, [str(file), "--high", "2"])
    with pytest.raises(SettingsError, match=r"none\.toml: no such settings file"):
        parse(Command, Both, [str(tmp_path / "none.toml")])


def test_no_file_at_all_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Command, Both, ["--high", "2"])
    assert ended.value.code == 2
    assert "SETTINGS.toml" in capsys.readouterr().err
