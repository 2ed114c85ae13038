"""The device work of one batch: read the prompts, write the titles, read them back, paint, decode.

Always with all slots full and at the same shapes, so that a row's bytes do not depend on who runs with it.

Shapes: B slots, N image tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import Request, Result, embed, embed_history, read_title
from adgen.generation.layers import StepLayers
from adgen.generation.memory_plan import MAX_VQ_PICTURES
from adgen.generation.painting import Painter
from adgen.generation.prompt import Prompt, Prompter
from adgen.generation.reading import check_request, continue_prompts, read_prompts, same_prompts, show_products
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots import Slots
from adgen.generation.timings import PhaseTimings
from adgen.generation.titles import TitleWriter
from adgen.model.image_tokens import to_uint8
from adgen.model.uniadgen import UniAdGen


@dataclass(frozen=True)
class _Rows:
    """A batch's requests and what was made of their histories."""

    requests: Sequence[Request]
    prompts: Sequence[Prompt]
    histories: Sequence[Tensor]
    """Embedded rows (R, D) of each request."""


class BatchRunner:
    """The slots of a model, and what runs over them."""

    def __init__(
        self,
        model: UniAdGen,
        prompter: Prompter,
        layers: StepLayers,
        num_slots: int,
        capacity: int,
        settings: EngineSettings,
        sampling: SamplingSettings,
        timings: PhaseTimings,
    ):
        """capacity: tokens of a conditional row; it grows with a prompt that needs more."""
        self._model, self._prompter, self._layers = model, prompter, layers
        self._settings, self._sampling, self._timings = settings, sampling, timings
        cache_dtype = settings.torch_cache_dtype(model.device)
        self.slots = Slots(model.config, layers, num_slots, capacity, model.dtype, cache_dtype)
        with torch.inference_mode():
            self._negative_end = self.slots.share_negative_prompt(embed(model, prompter.negative_prompt(), None))
        self._capture_steps()

    @torch.inference_mode()
    def run(self, requests: Sequence[Request]) -> list[Result]:
        """A result for each of B requests. ModelError, before any layer runs: a request that this model cannot take."""
        device, measure = self._model.device, self._timings.measure
        with measure("prefill", device):
            rows, hidden, shown = self._read(requests)
        with measure("title", device):
            written, titles = self._write_titles(rows, hidden)
        with measure("prefill", device):
            hidden, prompt_tokens = self._read_back(rows, written, titles)
        with measure("picture", device):
            codes = self._painter.paint(torch.cat((hidden, self._negative_end.expand_as(hidden))), shown).clone()
        with measure("vq", device):
            pictures = self._decode(codes)
        self._timings.rows += len(rows.requests)
        self._timings.prompt_tokens += prompt_tokens
        self._timings.title_steps += max(map(len, written))
        self._timings.picture_steps += self._painter.num_steps
        made = zip(titles, codes.cpu(), pictures, strict=True)
        return [Result(title or "", title is not None, row, picture, len(rows.requests)) for title, row, picture in made]

    def _read(self, requests: Sequence[Request]) -> tuple[_Rows, Tensor, bool]:
        """Prompts into the cache; hidden states (B, D) at their ends, and whether any product is shown."""
        model = self._model
        needed = max(check_request(model, self._prompter, request, self._sampling) for request in requests)
        firsts = same_prompts(requests, self._sampling.preference_noise)
        distinct = {first: requests[first] for first in firsts}
        prompts = {first: self._prompter.title_prompt(request.facts) for first, request in distinct.items()}
        histories = {first: self._history(request) for first, request in distinct.items()}
        embedded = {first: embed(model, prompts[first], histories[first]) for first in distinct}
        rows = _Rows(requests, *([found[first] for first in firsts] for found in (prompts, histories)))
        self._make_room(needed)
        self.slots.start([request.seed for request in requests])
        hidden = read_prompts(self._layers, self.slots, [embedded[first] for first in firsts])
        return rows, hidden, show_products(model, self.slots, requests, self._sampling.control_strength)

    def _write_titles(self, rows: _Rows, hidden: Tensor) -> tuple[list[list[int]], list[str | None]]:
        """Each row's tokens, and the title that they spell (None: it never closed)."""
        written = self._writer.write(hidden)
        titles = zip(rows.requests, written, strict=True)
        return written, [read_title(self._model, self._prompter, request, ids) for request, ids in titles]

    def _read_back(self, rows: _Rows, written: Sequence[Sequence[int]], titles: Sequence[str | None]) -> tuple[Tensor, int]:
        """Titles as the tokenizer spells them; hidden states (B, D) at begin-of-image, and how many tokens lie before it."""
        model, prompter = self._model, self._prompter
        pictures = [prompter.picture_prompt(r.facts, t or "") for r, t in zip(rows.requests, titles, strict=True)]
        self._make_room(max(map(len, pictures)) + model.config.image.tokens_per_picture)
        cached = [[*prompt.ids, *ids] for prompt, ids in zip(rows.prompts, written, strict=True)]
        hidden = continue_prompts(self._layers, self.slots, cached, pictures, self._embedded(pictures, rows))
        return hidden, sum(map(len, pictures))

    def _decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N) -> pictures (B, H, W, 3) uint8 on the CPU; always as many at once, so that bytes repeat."""
        some = min(len(codes), MAX_VQ_PICTURES)
        pictures = []
        for chunk in codes.split(some):
            full = torch.cat((chunk, chunk[-1:].expand(some - len(chunk), -1)))
            pictures.append(to_uint8(self._model.image_tokenizer.decode(full))[: len(chunk)].cpu())
        return torch.cat(pictures)

    def _history(self, request: Request) -> Tensor:
        return embed_history(self._model, self._prompter, request, self._sampling.preference_noise)

    def _embedded(self, prompts: Sequence[Prompt], rows: _Rows) -> list[Tensor]:
        """Each row's prompt with its history, (T, D)."""
        return [embed(self._model, prompt, history) for prompt, history in zip(prompts, rows.histories, strict=True)]

    def _make_room(self, capacity: int) -> None:
        """A prompt longer than was planned for moves the caches; the captured steps must be captured anew."""
        if self.slots.make_room(capacity):
            self._capture_steps()

    def _capture_steps(self) -> None:
        """The steps over the slots as they lie in memory. Ranks exchange sums inside a step, which stays uncaptured."""
        parts = (self._layers, self.slots, self._sampling, self._settings.tensor_parallel == 1)
        self._writer = TitleWriter(self._model, self._prompter, *parts)
        self._painter = Painter(self._model, *parts)
