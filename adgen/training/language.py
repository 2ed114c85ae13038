"""The stages `general` and `personal`: title and picture, next token by next token (docs/design.md 6.7 and 6.13).

The sequence is the whole prompt with its answer, begin of image, and the picture's K tokens. The position that reads
picture token j receives addition j; picture token 0 is predicted at begin of image, without any.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.errors import ModelError
from adgen.generation.generate import Request, generate
from adgen.generation.prompt import Prompter
from adgen.generation.sampling_settings import SamplingSettings
from adgen.model.checkpoint import save
from adgen.model.config import ModelConfig
from adgen.model.image_tokens import to_unit_range
from adgen.model.lora import merge_lora
from adgen.model.uniadgen import UniAdGen
from adgen.training.batches import IGNORED, LanguageCollator
from adgen.training.cost import forward_flops, gradient_flops
from adgen.training.settings import TrainingSettings
from adgen.training.task import Batch, Metrics, Task, metric, trained_modules


class LanguageTask(Task):
    """Next-token losses of a Uni-AdGen model."""

    earlier_names = (("click_outlook.", "click_prediction."),)
    on_host = ("num_items", "seeds")

    def __init__(self, model: UniAdGen, prompter: Prompter, settings: TrainingSettings):
        super().__init__()
        self.model, self.prompter, self.settings = model, prompter, settings
        self.click_prediction = ImagePrediction(model.config, settings.seed) if settings.losses.clicks else None
        if settings.losses.clicks and model.preference.style_encoder is None:
            raise ModelError(
                f"losses.clicks is {settings.losses.clicks:g}, but the model has no style encoder (preference.style_layers is 0)"
            )

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """loss = text weight * mean over samples of (title's mean) + image weight * mean over samples of (picture's mean).

        A sample without a title adds nothing to the text's mean, but counts in it: so the loss of a step does not depend
        on how its samples are cut into micro-batches.
        """
        weights = self.settings.losses
        titled = (batch["answer_ids"] != IGNORED).any(-1).sum()
        click_embeddings = self.click_embeddings(batch)
        if self.is_titles_alone:
            text = self.title_losses(self.prompt_hidden(batch, click_embeddings), batch)
            return weights.text * text.mean(), {"text": metric(text, titled)}
        hidden = self.hidden(batch, click_embeddings)
        text, image = self.title_losses(hidden, batch), self.picture_losses(hidden, batch)
        loss = weights.text * text.mean() + weights.image * image.mean()
        metrics = {"text": metric(text, titled), "image": metric(image)}
        if self.click_prediction is not None:
            clicks = self.click_losses(click_embeddings, batch)
            loss = loss + weights.clicks * clicks.mean()
            metrics |= {"clicks": metric(clicks, (batch["num_items"] > 0).sum())}
        return loss, metrics

    @property
    def is_titles_alone(self) -> bool:
        """Whether no loss reads a picture."""
        return self.settings.losses.image == 0 and self.click_prediction is None

    def click_embeddings(self, batch: Batch) -> Tensor | None:
        """The style embedding of each click (B, N, D); None where neither the prompt nor a loss reads it."""
        shown = self.settings.stage == "personal" and self.model.preference.style_encoder is not None
        if not shown and self.click_prediction is None:
            return None
        return self.model.encode_clicks(_at_least_one_item(batch["history_codes"]))

    def hidden(self, batch: Batch, click_embeddings: Tensor | None = None) -> Tensor:
        """Final hidden states (B, P + K, D)."""
        model = self.model
        prompt = model.embed_prompt(batch["ids"], batch["slots"], self.history(batch, click_embeddings))
        embeds = torch.cat((prompt, model.image_embedding(batch["codes"])), dim=1)
        attention = torch.cat((batch["attention"].bool(), torch.ones_like(batch["codes"], dtype=torch.bool)), dim=1)
        pixels = to_unit_range(batch["condition"]).to(model.dtype)
        tokens = model.foreground.condition_tokens(pixels, batch["hidden"])
        return model.decoder(embeds, attention, model.foreground.additions(tokens))

    def prompt_hidden(self, batch: Batch, click_embeddings: Tensor | None = None) -> Tensor:
        """Final hidden states (B, P, D) of the prompt with its answer, without a picture."""
        prompt = self.model.embed_prompt(batch["ids"], batch["slots"], self.history(batch, click_embeddings))
        return self.model.decoder(prompt, batch["attention"].bool())

    def history(self, batch: Batch, click_embeddings: Tensor | None = None) -> Tensor:
        """The rows (B, R, D) of all history slots; none in the general stage, whose prompts show no history."""
        codes, titles = batch["history_codes"], batch["history_titles"]
        if self.settings.stage == "general":
            return torch.zeros(len(codes), 0, self.model.config.decoder.hidden_size, device=codes.device, dtype=self.model.dtype)
        codes, titles = _at_least_one_item(codes), _at_least_one_item(titles)
        generators = [torch.Generator().manual_seed(seed) for seed in batch["seeds"].tolist()] if self.training else None
        rows = self.model.embed_history(codes, titles, self.training, generators, batch["num_items"], click_embeddings)
        return torch.cat(rows, dim=1)

    def title_losses(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Each sample's mean cross entropy (B,) over its answer tokens; 0 without any."""
        targets = batch["answer_ids"]
        at = batch["answer_at"][..., None].expand(-1, -1, hidden.shape[-1])
        logits = self.model.text_logits(hidden.gather(1, at))
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.view_as(targets).sum(-1) / (targets != IGNORED).sum(-1).clamp_min(1)

    def picture_losses(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Each sample's mean cross entropy (B,) over its picture tokens; the first row has a weight of its own in training."""
        codes = batch["codes"]
        predicting = hidden[:, -1 - codes.shape[1] : -1]  # from begin of image to the last token but one
        logits = self.model.image_logits(predicting)
        losses = F.cross_entropy(logits.float().flatten(0, 1), codes.flatten(), reduction="none")
        weights = torch.ones(codes.shape[1], device=codes.device)
        if self.training:
            weights[: math.isqrt(codes.shape[1])] = self.settings.losses.first_row
        return (losses.view_as(codes) * weights).sum(-1) / weights.sum()

    def click_losses(self, click_embeddings: Tensor, batch: Batch) -> Tensor:
        """Each sample's loss (B,): -log of the mean over its clicks of the probability of the picture's tokens, each of them
        predicted by itself from that click's style embedding; divided by their number. 0 without clicks."""
        places = predicted_places(batch["codes"].shape[1], batch["seeds"]).to(batch["codes"].device)
        num_items = batch["num_items"].to(places.device)
        codes = batch["codes"].gather(1, places)[:, None].expand(-1, click_embeddings.shape[1], -1)
        logits = self.model.image_logits(self.click_prediction(click_embeddings, places[:, None]))
        losses = F.cross_entropy(logits.float().flatten(0, 2), codes.flatten(), reduction="none").view_as(codes)
        real = torch.arange(click_embeddings.shape[1], device=places.device) < num_items[:, None]
        likely = (-losses.sum(-1)).masked_fill(~real, torch.finfo(torch.float32).min)
        total = likely.logsumexp(-1) - num_items.clamp_min(1).log()
        return torch.where(num_items > 0, -total / codes.shape[-1], 0.0)

    def step_flops(self, batch: Batch) -> float:
        """By formula: see `forward_flops` and `gradient_flops`; without the auxiliary image prediction, some hundredths of it."""
        read = batch["history_codes"].shape[1]
        shown = 0 if self.settings.stage == "general" else read
        parts = forward_flops(self.model.config, batch["ids"].shape[1], shown, batch["answer_ids"].shape[1], read)
        trainable = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        return len(batch["ids"]) * (sum(parts.values()) + gradient_flops(parts, trainable))

    def tokens(self, batch: Batch) -> int:
        """Positions, padding left out."""
        return int(batch["attention"].sum()) + batch["codes"].numel()

    @torch.no_grad()
    def samples(self, rows: Sequence[dict], collator: LanguageCollator, seed: int) -> tuple[list[Image.Image], list[str]]:
        """Rows of (product, reference, generated), and the titles as text."""
        chosen = [collator.sample(row, None) for row in rows]
        requests = [
            Request(
                sample.facts.product_title,
                seed,
                sample.facts.selling_points,
                sample.facts.history_titles,
                torch.from_numpy(sample.history_codes[: len(sample.facts.history_titles)]),  # what is shown of what is read
                to_unit_range(torch.from_numpy(sample.condition)),
            )
            for sample in chosen
        ]
        made = generate(self.model, self.prompter, requests, self.sampling(requests))
        pictures = [
            [Image.fromarray(sample.condition), _decoded(self.model, sample.codes), Image.fromarray(result.picture.numpy())]
            for sample, result in zip(chosen, made, strict=True)
        ]
        return [picture for row in pictures for picture in row], [result.title or "(no title)" for result in made]

    def unreached(self) -> set[str]:
        """Modules that no loss reaches, whatever is trainable: those of pictures, where titles alone are learned."""
        if not self.is_titles_alone:
            return set()
        apart = _OF_PICTURES if self.settings.stage == "personal" else (*_OF_PICTURES, "image_embedding")  # clicks are read by it
        return {module for module in trained_modules(self.model) if module.startswith(apart)}

    def sampling(self, requests: Sequence[Request]) -> SamplingSettings:
        """The published settings, with as many title tokens as the model has room for, 64 at most."""
        longest = max(len(self.prompter.title_prompt(request.facts)) for request in requests)
        room = self.model.config.decoder.max_positions - self.model.config.image.tokens_per_picture - longest
        return SamplingSettings(max_title_tokens=max(1, min(64, room)))

    def export(self, directory: Path) -> None:
        """A model directory; low-rank updates are merged into the weights."""
        trained = trained_modules(self.model) - self.unreached()
        merge_lora(self.model.decoder)
        self.model.config = self.model.config.model_copy(update={"lora": None})
        save(self.model, directory)
        self.prompter.save(directory)
        self.pass_on(directory, trained)


_MOST_PREDICTED = 64
_OF_PICTURES = ("foreground.", "image_head", "preference.style_encoder")


def predicted_places(number: int, seeds: Tensor) -> Tensor:
    """Which of a picture's `number` tokens each sample's clicks predict, (B, n): all, or every n-th from a start of the sample's
    own. With 576 of 16,384 codes and ten clicks the logits of all of them would take gigabytes."""
    stride = -(-number // _MOST_PREDICTED)
    starts = seeds[:, None] % stride
    return starts + torch.arange(0, number - stride + 1, stride, device=seeds.device)


def _at_least_one_item(items: Tensor) -> Tensor:
    """(B, N, T) as it is, or with an item of zeros: every worker runs the same modules, or ZeRO-3 never
    returns."""
    return items if items.shape[1] else items.new_zeros(len(items), 1, items.shape[2])


class ImagePrediction(nn.Module):
    """The auxiliary image prediction: what the image head reads (..., D) at each place of a picture, from a click's style
    embedding. A part of training alone: no model directory has it."""

    def __init__(self, config: ModelConfig, seed: int):
        super().__init__()
        width, generator = config.decoder.hidden_size, torch.Generator().manual_seed(seed)
        self.places = nn.Parameter(torch.randn(config.image.tokens_per_picture, width, generator=generator))
        self.read, self.write = nn.Linear(width, width), nn.Linear(width, width)
        for linear in (self.read, self.write):
            linear.weight.data = torch.randn(width, width, generator=generator) * width**-0.5
            linear.bias.data.zero_()

    def forward(self, embeddings: Tensor, places: Tensor) -> Tensor:
        """Style embeddings (..., D) and places (..., n) of the picture -> (..., n, D)."""
        return self.write(F.gelu(self.read(embeddings)[..., None, :] + self.places[places]))


def _decoded(model: UniAdGen, codes) -> Image.Image:
    """What the tokenizer makes of a reference's codes: the best that a picture of this model can be."""
    from adgen.model.image_tokens import to_uint8

    pixels = model.image_tokenizer.decode(torch.from_numpy(codes)[None].to(model.device))
    return Image.fromarray(to_uint8(pixels)[0].cpu().numpy())
