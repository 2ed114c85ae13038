"""Settings that decide what is learned. Where and how fast is the job's own (adgen/on_ray/training/settings.py)."""

from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from adgen.config import Removed, Settings
from adgen.model.config import LoRAConfig
from adgen.model.pbs_config import PBSConfig
from adgen.shop.synthetic.styles import StyleSet, style_set

Stage = Literal["tokenizer", "general", "personal", "pbs"]
LANGUAGE_STAGES = ("general", "personal")
UNTRAINED = "random"  # in the place of a DINOv2 directory


class LossSettings(Settings):
    """Weights of the next-token losses. Each is the mean over samples of a sample's mean over its tokens."""

    REMOVED = MappingProxyType({"outlook": Removed(0.0, "0.2.0")})
    text: float = Field(1.0, ge=0)
    """Of the title answer, its closing tag and end of sentence."""
    image: float = Field(1.0, ge=0)
    """Of the picture's tokens. At 0, and without `clicks`, a sample ends with its title: it takes a third of the time."""
    first_row: float = Field(1.0, gt=0)
    """Of the tokens of a picture's first row, against its others: they decide in which style it goes on, so what a history
    has to say is learned there."""
    clicks: float = Field(0.0, ge=0)
    """An auxiliary image prediction: the picture's tokens as each click predicts them by itself, from its style embedding. A
    sample's loss is that of a mixture, -log of the mean over its clicks of the picture's probability: the clicks that explain a
    picture learn from it and strays do not, so that pictures of one style get similar embeddings. It is part of training alone.
    Stage general shows no history, but trains the style encoder this way together with the decoder."""


class DropoutSettings(Settings):
    """Shares of samples that are trained without a part of their condition."""

    ADDED = frozenset({"clicks"})

    prompt: float = Field(0.1, ge=0, le=1)
    """The whole prompt becomes the negative one and only the picture counts: what classifier-free guidance needs."""
    foreground: float = Field(0.1, ge=0, le=1)
    """The product's additions are zero."""
    history: float = Field(0.0, ge=0, le=1)
    """A personal sample shows no history."""
    clicks: float = Field(1.0, ge=0, le=1)
    """A sample draws 0 to `history_items` of its user's clicks, each number alike, and repeats them until there are so many, as a
    refresh does for short histories; the others draw as many as there are."""


class TrainableSettings(Settings):
    """What of the model is trainable. `released` is the published recipe (docs/design.md 6.13): low-rank updates on q, k, v and o,
    the token table, and every module that is new over Janus-Pro. `full` is everything that the stage uses."""

    preset: Literal["full", "released"] = "full"
    freeze: tuple[str, ...] = ()
    """Further prefixes of parameter names that are frozen, such as decoder.lm_head."""
    lora: LoRAConfig = LoRAConfig()
    """Of the preset `released`. The updates are merged into the weights at the end."""


class OptimizerSettings(Settings):
    """The optimizer and its learning-rate schedule. The defaults are the published ones."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`muon` updates the matrices between hidden states by torch's Muon, everything else by AdamW; the torch engine alone."""
    learning_rate: float = Field(5e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)
    """Largest norm of all gradients together."""
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises linearly from zero."""
    final_share: float = Field(0.0, ge=0, le=1)
    """Of the rate, at the end of a cosine."""


class TokenizerSettings(Settings):
    """The VQ tokenizer's losses and codebook."""

    REMOVED = MappingProxyType(
        {
            "perceptual": Removed(0.0, "0.2.0"),
            "adversarial": Removed(0.0, "0.2.0"),
            "adversarial_from": Removed(0, "0.2.0"),
        }
    )
    l1: float = Field(1.0, ge=0)
    l2: float = Field(1.0, ge=0)
    """Weights of the reconstruction's absolute and squared error."""
    history: float = Field(0.5, ge=0)
    """Weight of pictures at the history's size, in addition to those at full size."""
    commitment: float = Field(0.25, ge=0)
    """Pull of latents towards their code."""
    decay: float = Field(0.95, gt=0, lt=1)
    """The codebook is a moving average of the latents that chose each code: this much stays each step."""
    revive_below: float = Field(0.1, ge=0)
    """A code that is chosen this rarely, as a share of an even use, moves onto a latent of the batch."""


class StyleSettings(Settings):
    """The styles of drawn pictures."""

    ADDED = frozenset({"styles", "many", "photographs"})

    styles: tuple[Literal["ten", "many"], ...] = ("ten",)
    """Of backgrounds: the ten named ones, and continuous families."""
    many: int = Field(default=600, gt=0)
    """How many of the continuous families."""
    photographs: Path | None = None
    """A folder with backgrounds/CLASS/*.jpg, cutouts/*.png and products.json, each class a style; None for drawings alone."""

    def style_set(self, split: str | None) -> StyleSet:
        """The checked set. SettingsError, InputError: no style, or no such photographs."""
        return style_set(self.styles, self.many, self.photographs and self.photographs.absolute(), split)


class ContrastSettings(StyleSettings):
    """The PBS encoder's training (docs/design.md 6.11): same background and other product attract, other backgrounds repel,
    those with the same product first of all. In-batch negatives and a predictor, as MoCo v3 (Chen et al. 2021)."""

    encoder: PBSConfig = PBSConfig(image_size=64, resize_to=64, patch_size=8, hidden_size=128, num_layers=4, num_heads=4)
    temperature: float = Field(0.2, gt=0)
    momentum: float = Field(0.99, ge=0, lt=1)
    """Of the second encoder, which follows the first."""
    backgrounds: Literal["drawn", "pictures"] = "drawn"
    """`drawn` paints `styles` and photographs' classes (of the split train) and knows which is which; `pictures` pastes products
    over the references, whose backgrounds count as all different."""
    pool: int = Field(400, gt=1)
    """Backgrounds that are made once."""
    same_picture: float = Field(0.5, ge=0, le=1)
    """Share of positives on the very same background; the others are on another one of its style."""


class EvaluationSettings(Settings):
    """Looking at the model while it learns. The held-out loss is taken with every checkpoint (checkpoint.every)."""

    every: int = Field(500, gt=0)
    """Steps between sample sheets; the last step has one, too."""
    examples: int = Field(32, ge=0)
    """Examples that are never trained on, for the held-out loss: a tenth of all at most."""
    samples: int = Field(4, ge=0)
    """Creatives on the sample sheet."""


class TrainingSettings(Settings):
    """What a stage learns, from what, for how long."""

    ADDED = frozenset({"open_words"})

    stage: Stage = "personal"
    seed: int = Field(0, ge=0)
    steps: int = Field(1500, gt=0)
    """Optimizer steps."""
    open_words: float = Field(0.0, ge=0, le=1)
    """Share of the samples whose product, points and title are drawn anew, of any words (adgen/shop/synthetic/open_words.py), each
    time that they are read: a model of few words learns them by heart, one of any words learns to copy."""
    batch: int = Field(32, gt=0)
    """Samples of a step, over all workers and accumulations."""
    losses: LossSettings = LossSettings()
    dropout: DropoutSettings = DropoutSettings()
    trainable: TrainableSettings = TrainableSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    contrast: ContrastSettings = ContrastSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.optimizer.warmup_steps > self.steps:
            raise ValueError(f"optimizer.warmup_steps {self.optimizer.warmup_steps} is more than steps {self.steps}")
        if self.stage in LANGUAGE_STAGES and self.losses.text == self.losses.image == 0:
            raise ValueError("losses.text and losses.image are both 0: nothing would be learned")
        if self.stage not in LANGUAGE_STAGES and self.losses.clicks:
            raise ValueError(f"losses.clicks is {self.losses.clicks:g}, but stage {self.stage} reads no clicks")
        return self
