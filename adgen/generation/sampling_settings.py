"""How titles and pictures are drawn, as settings. Loads no torch."""

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from adgen.config import Settings, read_json, validate_settings
from adgen.errors import ModelError

SAMPLING_FILE = "sampling.json"
"""In a model directory: sampling settings that suit this model. What the file leaves out has the published value."""


class SamplingSettings(Settings):
    """How titles and pictures are drawn. The defaults are the published ones (docs/design.md 6.9)."""

    ADDED = frozenset({"attempts", "retry_own_words", "retry_temperature", "retry_title_tokens"})

    title_temperature: float = Field(1.0, ge=0)
    """0 takes the most likely token."""
    title_top_k: int = Field(50, ge=0)
    """Draw from the k most likely tokens; 0 from all."""
    attempts: int = Field(3, ge=1, le=9)
    """Draws of a title, and of a picture, until no gate complains."""
    retry_temperature: float = Field(0.7, gt=0)
    """Of a title that is drawn again, where title_temperature is 0."""
    retry_title_tokens: int = Field(96, gt=0)
    """As max_title_tokens, of a title that is drawn again; the less counts."""
    retry_own_words: bool = False
    """Of a title that is drawn again: only words of its product's texts."""
    max_title_tokens: int = Field(512, gt=0)
    """A title that has not closed by then is empty."""
    picture_temperature: float = Field(1.0, ge=0)
    """0 takes the most likely code."""
    picture_top_k: int = Field(0, ge=0)
    """Draw from the k most likely codes; 0 from all, as published."""
    picture_top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the fewest likely codes with this probability together; 1: all."""
    guidance: float = Field(5.0, ge=0)
    """Classifier-free guidance w: unconditional + w * (conditional - unconditional)."""
    preference_noise: bool = False
    """Gumbel noise in the history masks, as the published model draws it even in inference; keyed by the row's seed."""
    control_strength: float = 1.5
    """Factor on the foreground additions; 1.0 in training, 1.5 as published."""


def model_sampling(directory: Path) -> dict[str, Any]:
    """The sampling settings that a model directory gives; empty without a SAMPLING_FILE. SettingsError or ModelError: what
    is wrong with the file."""
    file = directory / SAMPLING_FILE
    if not file.exists():
        return {}
    try:
        values = read_json(file)
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: cannot be read as JSON: {error}") from None
    return validate_settings(SamplingSettings, values, str(file)).model_dump(include=set(values))


class _Choice(Settings):
    """How titles and pictures are drawn. Default: the model's sampling.json, else as published."""

    ADDED = SamplingSettings.ADDED

    def of(self, its_own: Mapping[str, Any]) -> SamplingSettings:
        """The complete settings for a model. its_own: `ModelDirectory.sampling`."""
        return SamplingSettings.model_validate({**its_own} | self.model_dump(exclude_none=True))


def _optional(field: FieldInfo) -> tuple[Any, FieldInfo]:
    left_out = copy(field)  # with its bounds and its description
    left_out.annotation, left_out.default = field.annotation | None, None
    return left_out.annotation, left_out


_fields = {name: _optional(field) for name, field in SamplingSettings.model_fields.items()}
SamplingChoice = create_model("SamplingChoice", __base__=_Choice, __module__=__name__, __doc__=_Choice.__doc__, **_fields)
