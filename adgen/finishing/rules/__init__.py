"""Rule packs: what a title must not say, by language, with severity and exceptions. TOML files beside this one."""

from functools import cache
from importlib.resources import files
from typing import Literal

from adgen.config import Settings, read_toml, validate_settings


class Rule(Settings):
    """Terms that are forbidden for one reason."""

    id: str
    """Shown in the verdict."""
    severity: Literal["warn", "reject"]
    """The most that a hit may do; the gate's own level may make it less."""
    why: str
    """For people."""
    terms: tuple[str, ...]
    """Literal words or phrases; a term of letters and digits only matches whole words, a Chinese one is found in unspaced text,
    but not across the end of a word and the beginning of the next."""
    exceptions: tuple[str, ...] = ()
    """Phrases that hold a term and are allowed."""


class RulePack(Settings):
    """What is checked for titles of one language."""

    ADDED = frozenset({"negations", "negated_through", "idioms"})

    language: str
    """Language subtag of a locale: "zh" of "zh-CN"."""
    negations: tuple[str, ...] = ()
    """Words that deny what follows them."""
    negated_through: tuple[str, ...] = ()
    """Words that may stand between a negation and what it denies."""
    stop_words: tuple[str, ...]
    """Words that add no claim; a title may use them though no product text does."""
    idioms: tuple[str, ...] = ()
    """Words in which no shorter term is meant, of any rule or campaign: 第一 in 第一次."""
    rules: tuple[Rule, ...]
    """In order of precedence in the verdict."""


@cache
def rule_packs() -> dict[str, RulePack]:
    """Every pack by language; SettingsError names the file, the field and the value where one is not valid."""
    packs = (validate_settings(RulePack, read_toml(str(path)), path.name) for path in _pack_files())
    return {pack.language: pack for pack in packs}


@cache
def pack_texts() -> tuple[str, ...]:
    """Name and text of every pack, in order of their names."""
    return tuple(part for path in _pack_files() for part in (path.name, path.read_text(encoding="utf-8")))


def _pack_files():
    folder = files(__package__)
    return sorted((path for path in folder.iterdir() if path.name.endswith(".toml")), key=lambda path: path.name)
