"""The stage `pbs`: an encoder that sees backgrounds and overlooks products (docs/design.md 6.11).

Three pictures a sample: an anchor (product p on background b), a positive (another product on b, or on another picture
of b's style), a hard negative (p on another background). The loss is InfoNCE against all positives and hard negatives of
the batch, between a predictor over the trained encoder and a second encoder that follows it by momentum: MoCo v3 (Chen,
Xie & He 2021) with hard negatives. Backgrounds of one group are no negatives of each other.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.errors import InputError
from adgen.model.pbs import PBS_CONFIG_FILE, PBS_FILE, PBSEncoder, initialize_pbs, pbs, preprocess
from adgen.model.pbs_config import PBSConfig
from adgen.records import unit_interval
from adgen.shop.synthetic.drawing.backgrounds import set_on_background
from adgen.training.settings import TrainingSettings
from adgen.training.task import Batch, Collator, Metrics, Task, metric


class SceneCollator:
    """Rows with a `cutout` (PNG, RGBA, at the encoder's size) -> anchors, positives and hard negatives, each (B, 3, S, S)
    normalised; groups (B,) of both backgrounds. `backgrounds`: rows with a `group` and a `background`. The others' products come
    from the same rows, so a batch needs two samples at least."""

    def __init__(self, backgrounds: Sequence[dict], settings: TrainingSettings):
        self.settings, self.config = settings, settings.contrast.encoder
        self.backgrounds = [(row["group"], Image.open(io.BytesIO(row["background"])).convert("RGB")) for row in backgrounds]
        self.members: dict[int, list[int]] = {}
        for index, (group, _) in enumerate(self.backgrounds):
            self.members.setdefault(group, []).append(index)
        if len(self.members) < 2:
            raise InputError(
                f"all {len(self.backgrounds)} backgrounds are of one group ({', '.join(map(str, self.members)) or 'none'}): a hard "
                "negative needs a background of another one. Raise contrast.pool, or give references with other pictures"
            )

    def __call__(self, rows: Sequence[dict], epochs: Sequence[int] | None = None) -> Batch:
        cutouts = [Image.open(io.BytesIO(row["cutout"])) for row in rows]
        parts = {name: [] for name in ("anchor", "positive", "negative", "group", "other")}
        for index, row in enumerate(rows):
            key = (self.settings.seed, epochs[index] if epochs else None, row["number"])
            here, there, elsewhere = self.drawn_backgrounds(key)
            scenes = ((cutouts[index], here), (cutouts[index - 1], there), (cutouts[index], elsewhere))
            for name, (cutout, background) in zip(("anchor", "positive", "negative"), scenes, strict=True):
                parts[name].append(preprocess(set_on_background(cutout, self.backgrounds[background][1]), self.config))
            parts["group"].append(self.backgrounds[here][0])
            parts["other"].append(self.backgrounds[elsewhere][0])
        return {name: torch.stack(v) if isinstance(v[0], Tensor) else torch.tensor(v) for name, v in parts.items()}

    def drawn_backgrounds(self, key: tuple) -> tuple[int, int, int]:
        """Of the anchor, of the positive (same group), of the hard negative (another group)."""
        number = len(self.backgrounds)
        here = int(unit_interval("here", *key) * number)
        group = self.members[self.backgrounds[here][0]]
        there = here if unit_interval("same", *key) < self.settings.contrast.same_picture else _pick(group, "there", key)
        elsewhere = next(
            index
            for turn in range(number)
            if self.backgrounds[index := (int(unit_interval("elsewhere", *key) * number) + turn) % number][0]
            != self.backgrounds[here][0]
        )
        return here, there, elsewhere


class ContrastTask(Task):
    """The encoder, its predictor, and the encoder that follows."""

    largest_zero_stage = 2
    self_updated = ("follower.", "encoder.compress_layer.1.")

    def __init__(self, encoder: PBSEncoder, settings: TrainingSettings):
        super().__init__()
        self.own, size = settings.contrast, encoder.config.feature_size
        self.encoder = encoder.requires_grad_(True)
        self.predictor = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.follower = PBSEncoder(encoder.config).requires_grad_(False)
        self.follower.load_state_dict(encoder.state_dict())
        generator = torch.Generator().manual_seed(settings.seed)
        for parameter in self.predictor.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * (parameter.shape[-1] ** -0.5))

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        anchors = F.normalize(self.predictor(self.encoder(batch["anchor"])), dim=-1)
        with torch.no_grad():
            keys = F.normalize(self.follower(torch.cat((batch["positive"], batch["negative"]))), dim=-1)
        logits = anchors @ keys.T / self.own.temperature  # (B, 2B): positives first
        groups = torch.cat((batch["group"], batch["other"]))
        own = torch.arange(len(anchors), device=anchors.device)
        same = batch["group"][:, None] == groups
        same[own, own] = False
        losses = F.cross_entropy(logits.masked_fill(same, -torch.inf), own, reduction="none")
        nearest = logits.masked_fill(same, -torch.inf).argmax(-1)
        return losses.mean(), {
            "contrast": metric(losses),
            "found": metric((nearest == own).float()),
            "positive_cosine": metric((anchors * keys[: len(own)]).sum(-1)),
            "hard_cosine": metric((anchors * keys[len(own) :]).sum(-1)),
        }

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        for mine, theirs in zip(self.follower.parameters(), self.encoder.parameters(), strict=True):
            mine.lerp_(theirs.to(mine.dtype), 1 - self.own.momentum)

    def tokens(self, batch: Batch) -> int:
        """Patches of all three pictures."""
        return 3 * len(batch["anchor"]) * (self.encoder.config.image_size // self.encoder.config.patch_size) ** 2

    @torch.no_grad()
    def samples(self, rows: Sequence[dict], collator: Collator, seed: int) -> tuple[list[Image.Image], list[str]]:
        """Rows of (anchor, positive, hard negative) and the anchor's PBS to each of the others."""
        device = self.encoder.cls_token.device
        batch = collator(rows, None)
        anchor, positive, negative = (self.encoder(batch[name].to(device)) for name in ("anchor", "positive", "negative"))
        lines = [f"same {a:.2f}, other {b:.2f}" for a, b in zip(pbs(anchor, positive), pbs(anchor, negative), strict=True)]
        pictures = [_shown(batch[name][row]) for row in range(len(rows)) for name in ("anchor", "positive", "negative")]
        return pictures, lines

    def export(self, directory: Path) -> None:
        """The encoder alone: `adgen.model.pbs.load_pbs` takes the directory."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.encoder.state_dict().items()}
        save_file(tensors, directory / PBS_FILE, metadata={"format": "pt"})
        (directory / PBS_CONFIG_FILE).write_text(self.encoder.config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def new_encoder(config: PBSConfig, seed: int) -> PBSEncoder:
    """An untrained encoder."""
    return initialize_pbs(PBSEncoder(config), seed)


def _pick(group: Sequence[int], use: str, key: tuple) -> int:
    return group[int(unit_interval(use, *key) * len(group))]


def _shown(pixels: Tensor) -> Image.Image:
    """A preprocessed picture, for people."""
    low, high = pixels.min(), pixels.max()
    return Image.fromarray(((pixels - low) / (high - low + 1e-6) * 255).byte().permute(1, 2, 0).numpy().astype(np.uint8))
