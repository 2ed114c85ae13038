"""Which modules of a model are trained, and from which files they are: what `modules.json` in a model directory says.

No torch. A module is a child of UniAdGen; of `foreground` and `preference`, which are trained part by part, a child of theirs.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Self

from adgen.config import Settings, validate_settings
from adgen.errors import ModelError, SettingsError

MODULES_FILE = "modules.json"
State = Literal["trained", "untrained", "unknown"]
"""untrained: freshly initialised, or not there; unknown: its files do not say."""

CHILDREN = ("decoder", "foreground", "image_embedding", "image_head", "image_tokenizer", "preference")
"""UniAdGen's children."""
_PART_BY_PART = ("foreground", "preference")


def module_of(own: str) -> str:
    """The module of a state-dict key: `decoder`, `foreground.adapter_mlp`, `preference.text_mask_generator`, ..."""
    parts = own.split(".")
    return ".".join(parts[: 2 if parts[0] in _PART_BY_PART else 1])


class SourceFile(Settings):
    """A file that weights were taken from."""

    file: str
    """Its name, without a folder."""
    sha256: str
    bytes: int
    modules: tuple[str, ...]
    """What was taken from it."""


class TrainedStage(Settings):
    """A stage of `jobs/pretrain.py` that the model went through."""

    stage: str
    modules: tuple[str, ...]
    """What it trained."""


class ModelFacts(Settings):
    """What `modules.json` holds."""

    modules: dict[str, State]
    sources: tuple[SourceFile, ...] = ()
    """Where the weights came from, before any training."""
    stages: tuple[TrainedStage, ...] = ()
    """What was trained here since, the first stage first."""

    @property
    def is_complete(self) -> bool:
        """Whether it speaks of each of CHILDREN."""
        return {name.partition(".")[0] for name in self.modules} >= set(CHILDREN)

    def save(self, directory: str | Path) -> None:
        """Write `modules.json` into `directory`."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)
        (Path(directory) / MODULES_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Self | None:
        """Of a directory; None where it says nothing. ModelError names file, field and value."""
        path = Path(directory) / MODULES_FILE
        try:
            return validate_settings(cls, json.loads(path.read_text(encoding="utf-8")), str(path))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: not JSON: {error}") from None
        except SettingsError as error:
            raise ModelError(str(error)) from None

    def after(self, stage: str, trained: Iterable[str]) -> Self:
        """The facts of a model that a stage has trained these modules of."""
        names = tuple(sorted(set(trained)))
        states = self.modules | dict.fromkeys(names, "trained")
        return self.model_copy(update={"modules": states, "stages": (*self.stages, TrainedStage(stage=stage, modules=names))})

    def having(self, state: State) -> list[str]:
        """The modules in this state, in order."""
        return sorted(name for name, its_own in self.modules.items() if its_own == state)


def stated_by_training(document: Mapping, modules: Iterable[str]) -> set[str]:
    """The modules that the stages in a `training.json` trained: what a directory of 0.1.0 says of itself."""
    modules, trained = list(modules), set()
    stage: Mapping | None = document
    while isinstance(stage, Mapping):
        settings = stage.get("settings") or {}
        chosen = (settings.get("trainable") or {}).get("preset")
        frozen = tuple((settings.get("trainable") or {}).get("freeze") or ())
        learned = [name for name in modules if _trains(stage.get("stage"), chosen, name)]
        trained |= {name for name in learned if not f"{name}.".startswith(frozen or " ")}
        stage = stage.get("after")
    return trained


def _trains(stage: str | None, preset: str | None, module: str) -> bool:
    """Whether a stage trains a module (adgen/training/trainable.py)."""
    if stage == "tokenizer":
        return module == "image_tokenizer"
    rooms = ("decoder", "foreground") + (("preference",) if stage == "personal" else ())
    rooms += ("image_embedding", "image_head") if preset == "full" else ()
    return stage in ("general", "personal") and module.partition(".")[0] in rooms
