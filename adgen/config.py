"""Typed settings: one pydantic tree a job, read from TOML, overridden on the command line, saved whole with the run."""

import json
import logging
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from adgen.errors import SettingsError
from adgen.records import digest

log = logging.getLogger(__name__)
# Names of settings, misspelled ones too, whose values are repeated nowhere.
_URI = re.compile(r"file:|[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path has one slash of the two left
_SECRET = re.compile(r"secret|key|token|passw|credential|auth", re.IGNORECASE)


PLACE = "names a folder or a file, by path or URI"
"""Mark of a setting of text that does; a Path does in any case."""
Place = Annotated[str, PLACE]


@dataclass(frozen=True)
class Removed:
    """A setting that is no more."""

    default: Any
    """What it was by default, as JSON holds it: a file that says so is read with a warning, any other value is an error."""
    version: str
    """The version that removed it."""


class Settings(BaseModel):
    """Base of every settings section: unknown keys are errors, fields are documented, values do not change.

    A section that changes from version to version says so in three tables. They keep old files readable, and `digest` what it was:
    a creative is made anew only where a setting has another value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after 0.1.0: they enter the digest only where they are not at their default."""
    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Old name -> new name; the old one is read with a warning until 0.3.0, and stays in the digest."""
    REMOVED: ClassVar[Mapping[str, Removed]] = {}
    """Fields that are no more; their defaults stay in the digest."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Descriptions become one line each: `--help` breaks lines at the terminal's width, not where the source does."""
        for field in cls.model_fields.values():
            field.description = " ".join(field.description.split()) if field.description else field.description

    def digest(self) -> str:
        """A hash of every value in this section, whatever order the file had."""
        values = _digested(self, self.model_dump(mode="json"))
        return digest(type(self).__name__, json.dumps(values, sort_keys=True))

    def with_whole_paths(self) -> Self:
        """The same with absolute local paths: workers of Ray stand in other folders than the command was given in."""
        fields = type(self).model_fields.items()
        return self.model_copy(update={name: _whole(getattr(self, name), PLACE in field.metadata) for name, field in fields})

    @classmethod
    def table(cls, name: str) -> dict[str, Any]:
        """RENAMED or REMOVED of this class and those that it is made from."""
        return {key: value for base in reversed(cls.__mro__) for key, value in vars(base).get(name, {}).items()}


def _whole(value: Any, is_place: bool) -> Any:
    if isinstance(value, Settings):
        return value.with_whole_paths()
    names_local = isinstance(value, Path) or (is_place and value)
    if not names_local or _URI.match(str(value)):
        return value
    return type(value)(Path(value).absolute())


def _digested(value: Any, dumped: Any) -> Any:
    """A dumped value with the fields that 0.1.0 would have dumped, and those that came since where they say something."""
    if isinstance(value, tuple | list):
        return [_digested(each, made) for each, made in zip(value, dumped, strict=True)]
    if isinstance(value, Mapping):
        return {name: _digested(each, made) for (name, made), each in zip(dumped.items(), value.values(), strict=True)}
    if not isinstance(value, Settings):
        return dumped
    kind = type(value)
    added = frozenset().union(*(vars(base).get("ADDED", ()) for base in kind.__mro__))
    old_names = {new: old for old, new in kind.table("RENAMED").items()}
    made = {name: gone.default for name, gone in kind.table("REMOVED").items() if name not in added}
    for name, field in kind.model_fields.items():
        own = getattr(value, name)
        if name in added and own == field.get_default(call_default_factory=True):
            continue
        made[old_names.get(name, name)] = _digested(own, dumped[name])
    return made


S = TypeVar("S", bound=BaseModel)


def validate_settings(kind: type[S], values: dict[str, Any], source: str, missing: Any = None) -> S:
    """`values`, of this version or an earlier one, as `kind`; SettingsError names the source, each field, its value and what is
    wrong with it."""
    values = current_values(kind, values, source)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        if missing is not None:
            absent = {problem["loc"][0] for problem in problems if problem["type"] == "missing" and len(problem["loc"]) == 1}
            problems = [problem for problem in problems if problem["loc"][:1] not in {(name,) for name in absent}]
            if not problems:
                return _without_what_is_missing(kind, values, dict.fromkeys(absent, missing))
        lines = []
        for problem in problems:
            field = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
            said = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
            lines.append(f"{field}: {said}{_shown(field, problem['input'])}")
        raise SettingsError(f"{source}: " + "; ".join(lines)) from None


def _without_what_is_missing(kind: type[S], values: dict[str, Any], stand_ins: dict[str, Any]) -> S:
    """All fields of `kind` valid, but the stand-ins."""
    fields = {name: field for name, field in kind.model_fields.items() if name not in stand_ins}
    known = {
        name: TypeAdapter(Annotated[field.annotation, field]).validate_python(values[name])
        if name in values
        else field.get_default(call_default_factory=True)
        for name, field in fields.items()
    }
    return kind.model_construct(**known, **stand_ins)


def _shown(field: str, value: Any) -> str:
    """A value in an error; none that may be a secret, by its setting's name or by its look."""
    inner = [str(name) for name in value] if isinstance(value, Mapping) else []
    secret = any(_SECRET.search(name) for name in (field, *inner)) or ("://" in str(value) and "@" in str(value))
    return " (its value is not repeated: it may be secret)" if secret else f" (value {value!r})"


def current_values(kind: Any, values: Any, source: str, path: str = "") -> Any:
    """`values` of a file that an earlier version may have written, as this version names them: renamed settings under their new
    names, removed ones left out, both with a warning. SettingsError: a removed setting that was not at its default."""
    kind, is_table = _section_of(kind)
    if kind is None:
        return values
    if isinstance(values, list | tuple):
        return [current_values(kind, each, source, path) for each in values]
    if not isinstance(values, Mapping):
        return values
    if is_table:
        return {name: current_values(kind, each, source, f"{path}{name}.") for name, each in values.items()}
    renamed, removed, made = kind.table("RENAMED"), kind.table("REMOVED"), {}
    for old, value in values.items():
        if old in removed:
            _require_default(removed[old], value, f"{source}: {path}{old}")
            continue
        name = renamed.get(old, old)
        if name != old:
            if name in values:
                raise SettingsError(f"{source}: {path}{old} is the old name of {path}{name}, and both are there: keep one of them")
            log.warning("%s: %s%s is called %s now; the old name is read until 0.3.0", source, path, old, name)
        field = kind.model_fields.get(name)
        made[name] = current_values(field.annotation, value, source, f"{path}{name}.") if field else value
    return made


def _require_default(gone: Removed, value: Any, what: str) -> None:
    """A removed setting may still be there at its default, of which a warning tells."""
    if value != gone.default:
        raise SettingsError(f"{what}: removed in version {gone.version} (value {value!r}, default {gone.default!r}): leave it out")
    log.warning("%s: removed in version %s; ignored, since its value is what was the default", what, gone.version)


def _section_of(annotation: Any) -> tuple[type[Settings] | None, bool]:
    """The settings section in a field's type, and whether the field holds a table of such sections by name."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, False
    for inner in get_args(annotation):
        section, is_table = _section_of(inner)
        if section is not None:
            return section, is_table or get_origin(annotation) is dict
    return None, False


def read_toml(path: str | Path) -> dict[str, Any]:
    """The file's tables; SettingsError names the file, and the line where it is not TOML."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except OSError as error:
        raise SettingsError(f"{path}: no settings file that can be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a number or of brackets without end
        raise SettingsError(f"{path}: not TOML: {error}") from None


def read_json(path: str | Path) -> Any:
    """What a JSON file says. JSONDecodeError where it is none, numbers without end and brackets without end included; OSError;
    UnicodeDecodeError."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), text[:100], 0) from None


def load_settings(kind: type[S], path: str | Path, *, missing: Any = None) -> S:
    """Read `path` (TOML) as `kind`. `missing` is for a file that a command line completes: it stands in required fields that
    the file lacks, and rules about several fields together are not checked yet."""
    return validate_settings(kind, read_toml(path), str(path), missing)


# -- finishing -------------------------------------------------------------------------------------------------

PictureFormat = Literal["webp", "jpeg", "png"]
Level = Literal["off", "warn", "reject"]


class RenditionSettings(Settings):
    """One more size of each creative, cut from the same background around the same product."""

    width: int = Field(ge=64, le=4096)
    """Pixels."""
    height: int = Field(ge=64, le=4096)
    """Pixels."""
    format: PictureFormat = "webp"
    """File format."""


class GateLevels(Settings):
    """What each gate may do: `off` does not run, `warn` writes its verdict only, `reject` keeps the creative back."""

    title_empty: Level = "reject"
    """The model closed no title, or cleaning left nothing of it."""
    title_length: Level = "warn"
    """The title is wider than `title_good_width`, or was cut."""
    forbidden_words: Level = "reject"
    """Words that rule packs forbid; a rule of severity `warn` never rejects."""
    numbers_and_units: Level = "reject"
    """A number, with its unit, that the product's own texts do not state."""
    allowed_words: Level = "warn"
    """Words neither in the product's texts nor among the language's stop words."""
    picture_blank: Level = "reject"
    """A background of nearly one colour, as NaN or dead image tokens leave it."""
    product_visible: Level = "reject"
    """Product too small, too large, or cut off by the picture's frame."""


class PictureSettings(Settings):
    """What the shop's pictures may be; others are `too_large`. Their files may have 64 MiB and 50 million pixels."""

    max_aspect: float = Field(default=50.0, ge=1)
    """Longer side by the shorter one."""
    max_decoded_bytes: int = Field(default=2**30, gt=0)
    """Bytes of pictures that a process decodes at once, over all its threads; one picture with more is too large."""


class FinishSettings(Settings):
    """How a generated background and title become a creative: size, format, gates, marking."""

    ADDED = frozenset({"fallbacks", "webp_method"})

    width: int = Field(default=512, ge=64, le=4096)
    """Pixels. Other than 1:1 the background is cut, never stretched."""
    height: int = Field(default=512, ge=64, le=4096)
    """Pixels."""
    format: PictureFormat = "webp"
    """File format of the creative."""
    quality: int = Field(default=88, ge=1, le=100)
    """Of WebP and JPEG; PNG is lossless."""
    webp_method: int = Field(default=4, ge=0, le=6)
    """WebP: 2 takes 0.4 of the time of 4, for 3% more bytes."""
    renditions: tuple[RenditionSettings, ...] = ()
    """Further sizes of the same creative."""
    title_max_width: int = Field(default=150, ge=8)
    """Columns; a Chinese character or an emoji takes two. Google allows 150."""
    title_good_width: int = Field(default=60, ge=8)
    """Above it title_length speaks; 60 columns are 30 Chinese characters."""
    gates: GateLevels = GateLevels()
    """What each gate may do."""
    forbidden_words: tuple[str, ...] = ()
    """Further forbidden words of this campaign; each counts as severity `reject`."""
    forbidden_exceptions: tuple[str, ...] = ()
    """Phrases inside which no word is forbidden, such as a brand name."""
    fallbacks: bool = True
    """Where no attempt passes gates: a title by template, a plain background."""
    background_contrast_min: float = Field(default=2.0, ge=0, le=128)
    """Standard deviation of the background (0..128) below which it is blank."""
    product_share_min: float = Field(default=0.01, ge=0, le=1)
    """Smallest share of the picture that the product's pixels must take."""
    product_share_max: float = Field(default=0.95, ge=0, le=1)
    """Largest share of the picture that the product's pixels may take."""
    product_inside_min: float = Field(default=0.98, ge=0, le=1)
    """Least share of the product inside; renditions below it are left out."""
    digital_source_type: Literal["compositeWithTrainedAlgorithmicMedia", "trainedAlgorithmicMedia"] = (
        "compositeWithTrainedAlgorithmicMedia"
    )
    """IPTC's word in the XMP. The default is the true one, a real photograph on a generated background; a channel that
    knows only `trainedAlgorithmicMedia` can be given that."""
    aigc_producer: str | None = Field(default=None, min_length=1, max_length=200)
    """Provider's name or code in China's AIGC field (GB 45438-2025); null: none."""
    visible_labels: dict[str, str] = {}
    """Visible label by channel, such as {"douyin": "AI生成"}; the key "*" is every other channel. None by default,
    because some channels refuse pictures with text on them."""
    label_font: Annotated[str | None, PLACE] = None
    """Font file with the labels' characters; null: Pillow's own, Latin only."""

    @model_validator(mode="after")
    def _shares_are_in_order(self) -> "FinishSettings":
        if self.product_share_min >= self.product_share_max:
            raise ValueError(f"product_share_min {self.product_share_min} is not below product_share_max {self.product_share_max}")
        return self
