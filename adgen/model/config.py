"""Every size of a model, in one object that is saved as JSON with its weights."""

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from adgen.config import Settings, read_json, validate_settings
from adgen.errors import ModelError, SettingsError

CONFIG_FILE = "adgen.json"
STYLE_SLOT = -2
"""Among a prompt's slots: the position whose own embedding the style embedding is added to."""
_NAMES_ON_DISK = {"style_layers": "taste_layers", "style_gain": "taste_gain", "agreement_weighting": "taste_focus"}
"""Fields of PreferenceConfig whose names in `adgen.json` are those of version 0.1.0: a model's digest hashes the file, so a model
that is loaded and saved again keeps its digest."""


class DecoderConfig(Settings):
    """A Llama decoder (docs/design.md 6.1)."""

    hidden_size: int = Field(gt=0)
    """Width D of the residual stream."""
    intermediate_size: int = Field(gt=0)
    """Inner width of the SwiGLU feed-forward."""
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    """Rows of the token table, spare rows included."""
    max_positions: int = Field(gt=0)
    """Longest sequence: prompt, title and image tokens together."""
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(f"hidden_size {self.hidden_size} is not an even multiple of num_heads {self.num_heads}")
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of {self.num_key_value_heads} key/value heads")
        return self


class ImageTokenConfig(Settings):
    """The VQ image tokenizer, and the embedding and head of its tokens (docs/design.md 6.1 and 6.10)."""

    codebook_size: int = Field(gt=0)
    code_size: int = Field(8, gt=0)
    """Width of a code vector, and of a row of the image-token table."""
    base_channels: int = Field(128, gt=0, multiple_of=32)
    channel_multiplier: tuple[int, ...] = Field((1, 1, 2, 2, 4), min_length=1)
    """Channels of each level as multiples of base_channels; each level but the last halves the picture."""
    num_res_blocks: int = Field(2, gt=0)
    latent_channels: int = Field(256, gt=0)
    head_size: int = Field(gt=0)
    """Inner width of the image-token head."""
    norm_groups: int = Field(32, gt=0)
    """Groups of channels that each group norm takes together. With as many groups as channels every channel loses its mean over
    the picture, and with it the picture's colour: a narrow tokenizer needs fewer than the published 32."""
    image_size: int = Field(gt=0)
    """Side of a generated picture, pixels."""
    history_size: int = Field(gt=0)
    """Side of a history picture as the tokenizer sees it, pixels."""
    history_source_size: int = Field(512, gt=0)
    """A history picture is first resized to this square, aspect ignored: what the published weights have seen."""

    @property
    def factor(self) -> int:
        """Pixels of the picture per token, along one side."""
        return 2 ** (len(self.channel_multiplier) - 1)

    @property
    def tokens_per_picture(self) -> int:
        """Image tokens of a generated picture."""
        return (self.image_size // self.factor) ** 2

    @property
    def tokens_per_history_picture(self) -> int:
        """Image tokens of a history picture."""
        return (self.history_size // self.factor) ** 2

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        for name, size in (("image_size", self.image_size), ("history_size", self.history_size)):
            if size % self.factor:
                raise ValueError(f"{name} {size} is not a multiple of the tokenizer's factor {self.factor}")
        for width in (self.base_channels * factor for factor in self.channel_multiplier):
            if width % self.norm_groups:
                raise ValueError(f"norm_groups {self.norm_groups} does not divide a level's {width} channels")
        return self


class PreferenceConfig(Settings):
    """Mask generators and dual-modality fusion (docs/design.md 6.2 to 6.4)."""

    RENAMED: ClassVar = {old: new for new, old in _NAMES_ON_DISK.items()}

    num_heads: int = Field(16, gt=0)
    mask_layers: int = Field(2, gt=0)
    """Blocks of each mask generator."""
    text_mask_layers: int | None = Field(None, gt=0)
    """Blocks of the titles' mask generator where it has another number than the pictures'."""
    fusion_layers: int = Field(4, gt=0)
    tokens_per_image: int = Field(64, gt=0)
    """Rows of the position table of history pictures."""
    tokens_per_title: int = Field(30, gt=0)
    """Rows of the position table of history titles; a title is cut or padded to this many tokens."""
    keep_rate: float = Field(0.4, gt=0, le=1)
    """Share of the history tokens that a mask keeps."""
    feed_forward_factor: int = Field(4, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    residual: bool = False
    """Add the raw history embeddings to the fused ones, whose output projection then starts at zero. The published model
    has no such path; models trained here do (they learn in a third of the steps)."""
    residual_gain: float = Field(1 / 64, gt=0)
    """What the fused part is multiplied with before it is added: it comes out of a layer norm, some forty times as long as an
    embedding, and with a gain of 1 buries the raw history under one constant within a hundred steps of Adam."""
    style_layers: int = Field(0, ge=0)
    """Blocks of the style encoder, which encodes each clicked picture by itself. The style embedding is added where the picture
    begins. 0 for none: the published model has no such path."""
    style_gain: float = Field(8.0, gt=0)
    """Factor of the style embedding. After the first layer, hidden states of a trained decoder are about ten times as long as an
    embedding. A sum at the length of an embedding would be lost among them."""
    agreement_weighting: float = Field(0.0, ge=0)
    """How much clicks that agree outweigh clicks that do not, in generation and in held-out losses. Weights of the mean are
    proportional to exp(agreement_weighting * cosine of a click's embedding to the mean), applied twice. 0 gives equal weights,
    as in training. At 8, where three or more clicks agree, a click unlike them has about a thousandth of the weight of each."""


class ForegroundConfig(Settings):
    """Foreground perception: DINOv2 features of the product, injected into the decoder (docs/design.md 6.6, 6.7)."""

    hidden_size: int = Field(384, gt=0)
    num_layers: int = Field(12, gt=0)
    num_heads: int = Field(6, gt=0)
    patch_size: int = Field(14, gt=0)
    mlp_ratio: int = Field(4, gt=0)
    position_grid: int = Field(37, gt=0)
    """Side of DINOv2's own position table; resampled to the grid in use."""
    condition_size: int = Field(384, gt=0, multiple_of=16)
    """Side of the condition picture, pixels; 16 pixels make one condition token along a side."""
    interval: int = Field(6, gt=0)
    """Decoder layers 0, interval, 2 interval, ... receive an addition."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of training samples whose product is hidden."""

    @property
    def num_tokens(self) -> int:
        """Condition tokens of a product."""
        return (self.condition_size // 16) ** 2


class LoRAConfig(Settings):
    """Low-rank updates of frozen projections of the decoder, kept apart from the weights (Hu et al. 2021)."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class ModelConfig(Settings):
    """Every size of a Uni-AdGen model, from `tiny` to 7B and beyond."""

    ADDED = frozenset({"history_order"})

    name: str = "unnamed"
    decoder: DecoderConfig
    image: ImageTokenConfig
    preference: PreferenceConfig = PreferenceConfig()
    foreground: ForegroundConfig = ForegroundConfig()
    lora: LoRAConfig | None = None
    """Set while a model is trained with low-rank updates; merged models have none."""
    history_items: int = Field(10, ge=0)
    """Clicked products in a prompt: none, or this number."""
    history_order: Literal["keyed", "published"] = "keyed"
    """How they are drawn from a user's clicks (adgen/shop/history.py). A model converted from a release has seen `published`."""

    @property
    def num_additions(self) -> int:
        """Decoder layers that receive an addition."""
        return math.ceil(self.decoder.num_layers / self.foreground.interval)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.decoder.hidden_size % self.preference.num_heads:
            raise ValueError(
                f"decoder.hidden_size {self.decoder.hidden_size} is not a multiple of preference.num_heads "
                f"{self.preference.num_heads}"
            )
        if self.foreground.num_tokens != self.image.tokens_per_picture:
            raise ValueError(
                f"foreground.condition_size {self.foreground.condition_size} gives {self.foreground.num_tokens} condition "
                f"tokens, but image.image_size {self.image.image_size} has {self.image.tokens_per_picture} image tokens: "
                "each image token needs its condition token"
            )
        return self

    def save(self, directory: str | Path) -> None:
        """Write `adgen.json` into `directory`, with the names of version 0.1.0 (`_NAMES_ON_DISK`)."""
        values = self.model_dump(mode="json")
        values["preference"] = {_NAMES_ON_DISK.get(name, name): value for name, value in values["preference"].items()}
        for name in self.ADDED:  # so that an earlier version reads what says nothing new
            if values[name] == type(self).model_fields[name].default:
                del values[name]
        text = json.dumps(values, indent=2, sort_keys=True)
        (Path(directory) / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read `adgen.json`, with the names of any version; ModelError names the file, the field and the value."""
        path = Path(directory) / CONFIG_FILE
        try:
            return validate_settings(cls, _with_current_names(read_json(path), path), str(path))
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file: {directory} is not an adgen model directory") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{path}: not JSON: {error}") from None
        except SettingsError as error:
            raise ModelError(str(error)) from None


def _with_current_names(values: Any, path: Path) -> Any:
    """The document with today's names; ModelError where a value is there under both."""
    if not isinstance(values, dict) or not isinstance(values.get("preference"), dict):
        return values  # validation says what is wrong with it
    preference = dict(values["preference"])
    for name, on_disk in _NAMES_ON_DISK.items():
        if on_disk not in preference:
            continue
        if name in preference:
            raise ModelError(f"{path}: preference.{name} and preference.{on_disk} are one setting: keep one of them")
        preference[name] = preference.pop(on_disk)
    return values | {"preference": preference}


def janus_pro_7b() -> ModelConfig:
    """The published 7B release (docs/design.md 6.1)."""
    return ModelConfig(
        name="janus-pro-7b",
        decoder=_deepseek_llama(hidden_size=4096, intermediate_size=11008, num_layers=30, num_heads=32),
        image=ImageTokenConfig(codebook_size=16384, head_size=4096, image_size=384, history_size=128),
    )


def janus_pro_1b() -> ModelConfig:
    """Janus-Pro-1B sizes as its public config.json states them; read a directory's own config where there is one."""
    return ModelConfig(
        name="janus-pro-1b",
        decoder=_deepseek_llama(hidden_size=2048, intermediate_size=5632, num_layers=24, num_heads=16),
        image=ImageTokenConfig(codebook_size=16384, head_size=2048, image_size=384, history_size=128),
    )


def tiny() -> ModelConfig:
    """8.6 million parameters, every module present: what tests, demo and a laptop run, and what ships with the package."""
    return ModelConfig(
        name="tiny",
        decoder=DecoderConfig(
            hidden_size=192,
            intermediate_size=512,
            num_layers=6,
            num_heads=3,
            num_key_value_heads=3,
            vocab_size=4096,
            max_positions=1024,
        ),
        image=ImageTokenConfig(
            codebook_size=1024,
            base_channels=32,
            norm_groups=4,
            channel_multiplier=(1, 1, 2, 2),
            num_res_blocks=1,
            latent_channels=64,
            head_size=192,
            image_size=64,
            history_size=32,
            history_source_size=64,
        ),
        preference=PreferenceConfig(
            num_heads=4,
            mask_layers=1,
            fusion_layers=2,
            tokens_per_image=16,
            tokens_per_title=16,
            residual=True,
            style_layers=2,
            agreement_weighting=8.0,
        ),
        foreground=ForegroundConfig(hidden_size=96, num_layers=3, num_heads=3, position_grid=8, condition_size=128, interval=2),
        history_items=6,
    )


def _deepseek_llama(**sizes: int) -> DecoderConfig:
    return DecoderConfig(num_key_value_heads=sizes["num_heads"], vocab_size=102400, max_positions=16384, **sizes)


PRESETS = {"tiny": tiny, "janus-pro-1b": janus_pro_1b, "janus-pro-7b": janus_pro_7b}
