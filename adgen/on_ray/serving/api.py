"""What clients send and get, and what goes wrong between the two."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from adgen.errors import AdgenError

Name = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f]+$")]
Text = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")]
Campaign = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
UserKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class InlineProduct(_Model):
    """A product that is not in the table products."""

    title: Text
    selling_points: list[Text] = Field(default=[], max_length=50)
    scale: float = Field(default=0.7, gt=0, le=1)
    """Largest share of the frame that the product may take."""
    picture: str = Field(max_length=64 * 2**20)
    """The picture file in base64: with transparency, or on a plain background."""


def _named_by(field: str) -> dict[str, Any]:
    return {"required": [field], "properties": {field: {"type": "string"}}}


class CreativeRequest(_Model):
    """One pair, and how many creatives of it."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_named_by("user_id"), _named_by("user_key")]})

    user_id: Name | None = None
    user_key: UserKey | None = None
    """Of a user whose clicks are in the table histories."""
    product_id: Name
    campaign: Campaign | None = None
    locale: Name | None = None
    channel: Name | None = None
    n: int = Field(default=1, ge=1, le=16)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Default the pair's own, which the refresh has, too."""
    response_format: Literal["url", "b64_json"] = "url"
    history: list[Name] | None = Field(default=None, max_length=1000)
    """Clicked products, oldest first; default those of the table histories. Unknown ones count for nothing, as in a refresh."""
    product: InlineProduct | None = None

    @model_validator(mode="after")
    def _names_one_user(self) -> "CreativeRequest":
        if (self.user_id is None) == (self.user_key is None):
            raise ValueError("give either user_id or user_key")
        return self


class CreativeAnswer(BaseModel):
    """A creative."""

    url: str | None = None
    b64_json: str | None = None
    title: str | None
    product_id: str
    pair_id: str
    variant: int
    status: str
    reason: str | None = None
    seed: int | None = None
    fingerprint: str | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    locale: str | None = None
    channel: str | None = None
    title_source: str | None = None
    picture_source: str | None = None
    gates: dict[str, str] = {}
    run_id: str | None = None
    """The run that published it; null for one that was made on request."""


class CreativesAnswer(BaseModel):
    """As image APIs have it."""

    created: int
    """Seconds since 1970."""
    data: list[CreativeAnswer]


class Problem(BaseModel):
    """What was wrong, in a sentence for people and a word for programs."""

    message: str
    code: str


class ErrorAnswer(BaseModel):
    """An error."""

    error: Problem


class ServiceError(AdgenError):
    """An answer that is an error. Pickles: it comes from an engine's process."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def __reduce__(self) -> tuple:
        return type(self), (self.status, self.code, self.message)


NOT_FOUND = "there is no such creative"
"""The same for an unknown user and an unknown pair: nobody learns who is a user."""


def not_found() -> ServiceError:
    """Nothing more is said."""
    return ServiceError(404, "not_found", NOT_FOUND)
