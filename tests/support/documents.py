"""The documents for people, as tests read them: fenced blocks, their commands, and the parsers that know the commands' flags."""

import dataclasses
import importlib.util
import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import NamedTuple, get_type_hints

import tyro

from adgen import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "adgen/**/*.md", "cluster/*.md", "tests/*.md") for path in ROOT.glob(pattern)
)
FOREIGN = {
    *("aws", "curl", "docker", "eksctl", "helm", "jq", "kubectl", "openssl", "ray", "sed", "tensorboard"),
    *("base64", "cd", "do", "done", "export", "for", "mkdir", "umask"),
}
"""Programs of others, whose flags are theirs."""
_FENCE = re.compile(r"^```(\w*)\s*$")
_COMMENT = re.compile(r"^<!-- (\w+): (.+) -->$")


class Block(NamedTuple):
    """A fenced block."""

    document: str
    line: int
    language: str
    mark: tuple[str, str] | None
    """("needs", "gpu") of the comment `<!-- needs: gpu -->` above it, or ("file", its name)."""
    text: str

    @property
    def is_run(self) -> bool:
        """Whether tests run it; a block that needs what a test has not is parsed only."""
        return self.mark is None or self.mark[0] != "needs"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command: continued lines joined, comments gone, `&&`, `;`, `|` and `&` end a command."""
        return [words for line in self.text.replace("\\\n", " ").splitlines() for words in _split(line)]


def blocks(document: Path) -> Iterator[Block]:
    """The fenced blocks of a document, in order."""
    name, mark, language, start, inside = document.relative_to(ROOT).as_posix(), None, None, 0, []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if language is not None and fence:
            yield Block(name, start, language, mark, "\n".join(inside) + "\n")
            language, mark = None, None
        elif language is not None:
            inside.append(line)
        elif fence:
            language, start, inside = fence.group(1), number + 1, []
        elif comment := _COMMENT.match(line):
            mark = comment.groups()
        elif line.strip():
            mark = None


def _split(line: str) -> list[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    found, words = [], []
    for word in lexer:
        if set(word) <= set(";&|"):
            found.append(words)
            words = []
        else:
            words.append(word)
    return [words for words in [*found, words] if words]


def load_job(name: str):
    """A job's module, loaded once."""
    key = f"documented_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, ROOT / "jobs" / f"{name}.py")
        sys.modules[key] = importlib.util.module_from_spec(spec)  # where dataclasses look for their source
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


def job_of(words: list[str]) -> str | None:
    """The job that a command runs; None if it runs none."""
    script = re.fullmatch(r"(?:/opt/adgen/)?jobs/(\w+)\.py", words[1]) if words[0].endswith("python") and len(words) > 1 else None
    return script.group(1) if script else None


def parse(words: list[str]) -> None:
    """Let the command's own parser read it, and run nothing. SystemExit, SettingsError or AssertionError: it would not be taken."""
    if words[:3] == ["ray", "job", "submit"]:
        parse(words[words.index("--") + 1 :])
    elif words[0] == "adgen":
        spec = cli.app._subcommands[words[1]]
        _parse_act(getattr(spec, "target", spec), words[2:])  # a plain function in older versions of tyro
    elif job := job_of(words):
        module = load_job(job)
        arguments = [word.removeprefix("/opt/adgen/") for word in words[2:]]
        if hasattr(module, "commands"):
            _parse_act(module.commands.acts[arguments[0]], arguments[1:])
        else:
            _parse_settings(module, arguments)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), f"the Makefile has no target {words[1]}"
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\w+", words[-1])) <= set(extras), words
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words[3:] if not word.startswith("-")), words
    else:
        assert words[0] in FOREIGN, f"{words[0]}: neither ours nor a known program of others"


def _parse_act(act: Callable, arguments: list[str]) -> None:
    tyro.cli(_doing_nothing(act), args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


def _parse_settings(module, arguments: list[str]) -> None:
    _, field, *_ = dataclasses.fields(module.Command)  # the file first, then what is in it
    command = module.parse(module.Command, get_type_hints(module.Command)[field.name], arguments)
    if hasattr(module, "complete"):
        module.complete(command)


def _doing_nothing(command: Callable) -> Callable:
    """With the same parameters; no wrapper, since tyro would call what is wrapped."""
    stub = FunctionType((lambda *_args, **_named: None).__code__, command.__globals__, command.__name__)
    stub.__annotations__, stub.__signature__ = command.__annotations__, inspect.signature(command)
    return stub
