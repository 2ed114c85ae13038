"""Every job and every command explains itself, and no secret is asked for on a command line."""

import importlib.util
import sys
from pathlib import Path

import pytest

from adgen import cli

JOBS = sorted(path.stem for path in (Path(__file__).parent.parent / "jobs").glob("*.py"))
COMMANDS = sorted(cli.app._subcommands)
LONGEST = 300  # lines of the refresh's help, of 100 columns


def main_of(job: str, monkeypatch):
    path = Path(__file__).parent.parent / "jobs" / f"{job}.py"
    spec = importlib.util.spec_from_file_location(f"help_of_{job}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their source
    spec.loader.exec_module(module)
    return module.main


def help_of(main, arguments: list[str], capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("job", JOBS)
def test_a_jobs_help_begins_with_its_usage_and_asks_for_no_secret(job, capsys, monkeypatch):
    text = help_of(main_of(job, monkeypatch), [], capsys, monkeypatch)
    assert text.startswith("usage: ")
    assert "[-h]" in text.splitlines()[0]
    assert not [word for word in ("access-key", "access_key", "SecretStr", "secret-access") if word in text.lower()]
    if job == "refresh":
        assert len(text.splitlines()) <= LONGEST


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_begins_with_its_usage(command, capsys, monkeypatch):
    text = help_of(cli.main, [command], capsys, monkeypatch)
    assert text.startswith(f"usage: adgen {command} ")


def test_help_of_adgen_lists_its_commands(capsys, monkeypatch):
    text = help_of(cli.main, [], capsys, monkeypatch)
    assert COMMANDS
    assert all(command in text for command in COMMANDS)
