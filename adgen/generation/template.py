"""The wording of a prompt, read from `prompt.toml`: what may be said, and how the special tokens are spelled."""

import json
import string
import tomllib
from importlib import resources
from pathlib import Path

from pydantic import Field

from adgen.config import Settings, validate_settings
from adgen.errors import ModelError, SettingsError


class TokenNames(Settings):
    """How the special tokens are spelled."""

    begin_of_sentence: str
    end_of_sentence: str
    pad: str
    image_placeholder: str
    begin_of_image: str
    end_of_image: str
    title_placeholder: str
    begin_of_history_title: str
    end_of_history_title: str


class Template(Settings):
    """The wording of a prompt (`prompt.toml`)."""

    chat: str
    """The conversation; fields {user} and {answer}."""
    answer: str
    """What the model says before the picture; field {title}."""
    user: str
    """What is asked; fields {selling_points}, {history_titles}, {product_title}, {history_images}."""
    negative: str
    """The user text of the unconditional prompt."""
    selling_points_joined_by: str = ","
    tokens: TokenNames
    max_product_title_tokens: int = Field(128, gt=0)
    """A longer product title is cut."""
    max_selling_points_tokens: int = Field(96, gt=0)
    """Longer selling points are cut."""

    @property
    def title_open(self) -> str:
        """What stands before a title in the answer."""
        return self.answer.format(title="\0").split("\0")[0]

    @property
    def title_close(self) -> str:
        """What ends a title."""
        return self.answer.format(title="\0").split("\0")[1]


def load_template(path: Path | None = None) -> Template:
    """A template file, by default ours; ModelError names the file and the field."""
    default = resources.files("adgen.generation") / "templates" / "default.toml"
    source = str(path or "templates/default.toml")
    try:
        template = validate_settings(Template, tomllib.loads((path or default).read_text(encoding="utf-8")), source)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, SettingsError) as error:
        raise ModelError(f"{source}: {error}") from None
    wanted = {
        "chat": {"user", "answer"},
        "answer": {"title"},
        "user": {"selling_points", "history_titles", "product_title", "history_images"},
    }
    for field, names in wanted.items():
        try:
            parsed = [part[1:] for part in string.Formatter().parse(getattr(template, field)) if part[1] is not None]
        except ValueError as error:
            raise ModelError(f"{source}: {field}: {error}") from None
        found = [
            name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") for name, spec, conversion in parsed
        ]
        if sorted(found) != sorted(names):
            raise ModelError(f"{source}: {field} has the fields {found}, needs each of {sorted(names)} once")
    if not template.title_close:
        raise ModelError(f"{source}: answer has nothing after {{title}}, so no title could ever end")
    return template


def as_toml(template: Template) -> str:
    """TOML of a flat tree of strings and numbers; JSON strings are TOML basic strings."""
    values = template.model_dump(mode="json")
    tokens = values.pop("tokens")
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join([*lines, "", "[tokens]", *(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in tokens.items()), ""])
