"""Typed settings: one pydantic tree a job, read from TOML, overridden on the command line, saved whole with the run."""

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from adgen.errors import SettingsError
from adgen.records import digest


class Settings(BaseModel):
    """Base of every settings section: unknown keys are errors, fields are documented, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    def digest(self) -> str:
        """A hash of every value in this section, whatever order the file had."""
        return digest(type(self).__name__, json.dumps(self.model_dump(mode="json"), sort_keys=True))


S = TypeVar("S", bound=BaseModel)


def validate_settings(kind: type[S], values: dict[str, Any], source: str) -> S:
    """`values` as `kind`; SettingsError names the source, each field, its value and what is wrong with it."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            field = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
            if problem["type"] == "extra_forbidden":
                lines.append(f"{field}: unknown key (value {problem['input']!r})")
            else:
                lines.append(f"{field}: {problem['msg']} (value {problem['input']!r})")
        raise SettingsError(f"{source}: " + "; ".join(lines)) from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """The file's tables; SettingsError names the file, and the line where it is not TOML."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None


def load_settings(kind: type[S], path: str | Path) -> S:
    """Read `path` (TOML) as `kind`."""
    return validate_settings(kind, read_toml(path), str(path))
