"""Settings from version to version: old files are read, and digests say only what changed."""

import importlib
import json
import logging
import re
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
from pydantic import Field

from adgen.config import (
    PLACE,
    FinishSettings,
    Place,
    Removed,
    RenditionSettings,
    Settings,
    load_settings,
    read_json,
    validate_settings,
)
from adgen.errors import ModelError, SettingsError
from adgen.model.config import ModelConfig
from adgen.records import digest


class Inner(Settings):
    size: int = 3


class Before(Settings):
    width: int = 8
    inner: Inner = Inner()
    several: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = Field(default_factory=dict)
    maybe: Inner | None = None
    drafts: int = 1


class InnerNow(Settings):
    ADDED: ClassVar = frozenset({"depth"})
    RENAMED: ClassVar = {"size": "side"}
    side: int = 3
    depth: int = 0


class Now(Settings):
    ADDED: ClassVar = frozenset({"height"})
    REMOVED: ClassVar = {"drafts": Removed(1, "0.2.0")}
    width: int = 8
    height: int | None = None
    inner: InnerNow = InnerNow()
    several: tuple[InnerNow, ...] = ()
    by_name: dict[str, InnerNow] = Field(default_factory=dict)
    maybe: InnerNow | None = None


class NowAndMore(Now):
    more: int = 0


OLD = {
    "width": 9,
    "inner": {"size": 4},
    "several": [{"size": 5}],
    "by_name": {"a": {"size": 6}},
    "maybe": {"size": 7},
    "drafts": 1,
}


def under_the_name_before(settings: Settings) -> str:
    """The digest that these values would have under the class name `Before`."""
    return type("Before", (type(settings),), {"__module__": __name__})(**dict(settings)).digest()


def test_the_digest_is_that_of_the_version_that_wrote_it():
    before, now = Before(**OLD), validate_settings(Now, OLD, "old.toml")
    assert now == Now(width=9, inner={"side": 4}, several=[{"side": 5}], by_name={"a": {"side": 6}}, maybe={"side": 7})
    assert under_the_name_before(now) == before.digest()
    assert under_the_name_before(Now()) == Before().digest()


@pytest.mark.parametrize("change", [{"height": 4}, {"inner": {"depth": 1}}, {"width": 10}, {"several": [{"side": 5, "depth": 1}]}])
def test_a_value_that_says_something_changes_the_digest(change):
    assert Now(**change).digest() != Now().digest()


def test_the_digest_of_0_1_0_has_every_value():
    """As stores hold it; of settings with a list of sections."""
    settings = FinishSettings(renditions=(RenditionSettings(width=300, height=600),), visible_labels={"*": "AI"})
    assert settings.digest() == digest(
        "FinishSettings", json.dumps(settings.model_dump(mode="json", exclude=set(FinishSettings.ADDED)), sort_keys=True)
    )


def test_old_names_and_removed_settings_at_their_default_are_read_with_a_warning(caplog, tmp_path):
    file = tmp_path / "old.toml"
    file.write_text("width = 9\ndrafts = 1\n[inner]\nsize = 4\n[by_name.a]\nsize = 6\n[[several]]\nsize = 5\n")
    with caplog.at_level(logging.WARNING):
        made = load_settings(NowAndMore, file)
    assert (made.inner.side, made.several[0].side, made.by_name["a"].side) == (4, 5, 6)
    assert caplog.messages == [
        f"{file}: drafts: removed in version 0.2.0; ignored, since its value is what was the default",
        f"{file}: inner.size is called side now; the old name is read until 0.3.0",
        f"{file}: by_name.a.size is called side now; the old name is read until 0.3.0",
        f"{file}: several.size is called side now; the old name is read until 0.3.0",
    ]


def test_a_removed_setting_at_another_value_names_the_version():
    with pytest.raises(SettingsError, match=r"old\.toml: drafts: removed in version 0\.2\.0 \(value 4, default 1\): leave it out"):
        validate_settings(NowAndMore, {"drafts": 4}, "old.toml")


def test_both_names_together_are_an_error():
    with pytest.raises(SettingsError, match=r"old\.toml: inner\.size is the old name of inner\.side, and both are there"):
        validate_settings(Now, {"inner": {"size": 1, "side": 1}}, "old.toml")


@pytest.mark.parametrize("values", [{"inner": 3}, {"several": "x"}, {"several": [3]}, {"by_name": [1]}, {"other": 1}, {"maybe": 1}])
def test_what_is_no_section_is_still_named(values):
    with pytest.raises(SettingsError, match=rf"old\.toml: .*{next(iter(values))}"):
        validate_settings(Now, values, "old.toml")


def test_a_section_that_is_left_out_is_fine():
    assert validate_settings(Now, {"maybe": None}, "old.toml") == Now()


# -- nothing is forgotten ------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent
FIELDS_OF_0_1_0 = json.loads((ROOT / "tests" / "golden" / "runs" / "settings_0_1_0.json").read_text())
"""Name of each settings class of version 0.1.0 -> its fields."""


def current_classes() -> dict[str, type[Settings]]:
    """Those classes as they are now. A class that is called otherwise has another digest, and so is missing here."""
    found = {}
    for file in (ROOT / "adgen").rglob("*.py"):
        names = FIELDS_OF_0_1_0.keys() & set(
            re.findall(r"^(?:class )?(\w+)(?:\(| = )", file.read_text(encoding="utf-8"), re.MULTILINE)
        )
        if names:
            module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
            found |= {name: getattr(module, name) for name in names}
    return found


def forgotten(kind: type[Settings], before: set[str]) -> set[str]:
    """Fields that came or went without a word in ADDED, RENAMED or REMOVED: each would make every creative of every store anew,
    or an old settings file unreadable."""
    renamed, now = kind.table("RENAMED"), set(kind.model_fields)
    added = frozenset().union(*(vars(base).get("ADDED", ()) for base in kind.__mro__))
    came = now - before - added - {new for old, new in renamed.items() if old in before}
    return came | (before - now - renamed.keys() - kind.table("REMOVED").keys())


def test_every_field_that_came_or_went_since_0_1_0_is_listed():
    found = current_classes()
    assert found.keys() == FIELDS_OF_0_1_0.keys()
    assert {name: gone for name, kind in found.items() if (gone := forgotten(kind, set(FIELDS_OF_0_1_0[name])))} == {}


def test_a_field_that_nobody_listed_is_found():
    class Careless(Before):
        width_again: int = 1

    before = set(Before.model_fields)
    assert forgotten(Careless, before) == {"width_again"}
    assert forgotten(Inner, {"size", "colour"}) == {"colour"}
    assert forgotten(Now, before) == set()
    assert forgotten(InnerNow, {"size"}) == set()


def test_a_folder_as_settings_file_is_one_sentence(tmp_path):
    with pytest.raises(SettingsError, match=f"{tmp_path}: no settings file that can be read: Is a directory"):
        load_settings(FinishSettings, tmp_path)


class Places(Settings):
    inputs: Place = ""
    out: Annotated[str | None, PLACE] = None
    size: str = "tiny"
    model: Path | None = None
    finish: FinishSettings = FinishSettings()


@pytest.mark.parametrize("uri", ["s3://bucket/shop", "file:///data/shop", "file:shop", "gs://bucket/shop", "s3:/bucket", ""])
def test_a_uri_is_whole_already(uri):
    assert Places(inputs=uri, out=uri).with_whole_paths() == Places(inputs=uri, out=uri)


def test_local_paths_are_of_the_folder_where_the_command_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = Places(inputs="./shop", out="..", size="small", model=Path("model"), finish=FinishSettings(label_font="a.ttf"))
    whole = given.with_whole_paths()
    assert (whole.inputs, whole.out, whole.size) == (f"{tmp_path}/shop", f"{tmp_path}/..", "small")
    assert (whole.model, whole.finish.label_font) == (tmp_path / "model", f"{tmp_path}/a.ttf")
    assert whole.with_whole_paths() == whole


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"a": ', ""])
def test_json_that_does_not_end_is_no_json(tmp_path, text):
    """The parser itself has other errors for brackets and numbers."""
    path = tmp_path / "adgen.json"
    path.write_text(text)
    with pytest.raises(json.JSONDecodeError):
        read_json(path)
    with pytest.raises(ModelError, match=rf"{path}: not JSON"):
        ModelConfig.load(tmp_path)


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, "x = " + "1" * 5000, "x = ", "\udcff"])
def test_settings_that_do_not_end_are_no_toml(tmp_path, text):
    path = tmp_path / "refresh.toml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(SettingsError, match=rf"{path}: not TOML"):
        load_settings(Settings, path)
