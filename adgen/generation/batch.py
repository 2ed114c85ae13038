"""The device work of one batch: read the prompts, write the titles, read them back, paint, decode.

Always with all slots full and at the same shapes, so that a row's bytes do not depend on who runs with it.

Shapes: B slots, N image tokens, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import Request, Result, TitleResult, embed, embed_history, read_title, title_fits
from adgen.generation.layers import StepLayers
from adgen.generation.own_words import OwnWords
from adgen.generation.painting import Painter
from adgen.generation.prefill import check_request, continue_prompts, read_prompts, same_prompts, show_products
from adgen.generation.prompt import Prompt, Prompter
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots import Slots
from adgen.generation.slots_per_device import MAX_VQ_PICTURES
from adgen.generation.timings import PhaseTimings
from adgen.generation.titles import TitleWriter
from adgen.model.image_tokens import to_uint8
from adgen.model.uniadgen import UniAdGen
from adgen.records import variant_seed


@dataclass(frozen=True)
class _Rows:
    """A batch's requests and what was made of their histories."""

    requests: Sequence[Request]
    prompts: Sequence[Prompt]
    histories: Sequence[Tensor]
    """Embedded rows (R, D) of each request."""


@dataclass
class _Titles:
    """Of each row of a batch."""

    cached: list[list[int]]
    """The tokens written last: what the row's cache holds behind its prompt."""
    texts: list[str | None]
    """The title that stays; None: it never closed."""
    firsts: list[str | None]
    """As it was drawn first."""
    attempts: list[int]
    are_templates: list[bool]


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
        agree: Callable[[Sequence[bool]], list[bool]] = list,
        switched_off: frozenset[str] = frozenset(),
    ):
        """capacity: tokens of a conditional row; it grows with a prompt that needs more. agree: what this rank's checks say -> what
        every rank acts on. switched_off: kernels that are not to be used (`engine_settings.KernelName`)."""
        self._off = switched_off
        self._model, self._prompter, self._layers = model, prompter, layers
        self._settings, self._sampling, self._timings, self._agree = settings, sampling, timings, agree
        cache_dtype = settings.torch_cache_dtype(model.device)
        self.slots = Slots(model.config, layers, num_slots, capacity, model.dtype, cache_dtype)
        for branch in (self.slots.conditional, self.slots.unconditional):
            branch.plain = "attention" in switched_off
        with torch.inference_mode():
            self._negative_end = self.slots.share_negative_prompt(embed(model, prompter.negative_prompt(), None))
        self._capture_steps()

    @torch.inference_mode()
    def run(self, requests: Sequence[Request]) -> list[Result]:
        """A result for each of B requests. ModelError, before any layer runs: a request that this model cannot take."""
        rows, titles, shown = self._titled(requests)
        with self._timings.measure("prefill", self._model.device):
            hidden, prompt_tokens = self._read_back(rows, titles)
        codes, pictures, painted = self._paint(rows, torch.cat((hidden, self._negative_end.expand_as(hidden))), shown)
        self._timings.rows += len(rows.requests)
        self._timings.prompt_tokens += prompt_tokens
        made = zip(titles.texts, codes.cpu(), pictures, titles.attempts, painted, titles.are_templates, strict=True)
        size = len(rows.requests)
        off = ",".join(sorted(self._off))
        return [Result(title or "", title is not None, row, picture, size, *tries, off) for title, row, picture, *tries in made]

    @torch.inference_mode()
    def titles(self, requests: Sequence[Request]) -> list[TitleResult]:
        """The title that `run` would give each of B requests. ModelError as there."""
        _, titles, _ = self._titled(requests)
        self._timings.rows += len(requests)
        made = zip(titles.firsts, titles.texts, titles.are_templates, strict=True)
        return [TitleResult(first or "", text or "", is_template) for first, text, is_template in made]

    @torch.inference_mode()
    def some_codes(self, num_steps: int, captured: bool = True) -> Tensor:
        """The first codes (B, num_steps) of pictures without any prompt but the end of the negative one: a trial of the steps."""
        painter = self._painter
        if not captured:
            painter = Painter(self._model, self._layers, self.slots, self._sampling, False, plain_draw="draw" in self._off)
        self.slots.start(list(range(self.slots.num_slots)))
        hidden = self._negative_end.expand(2 * self.slots.num_slots, -1)
        return painter.paint(hidden, False, min(num_steps, self.slots.num_tokens)).clone()

    def _titled(self, requests: Sequence[Request]) -> tuple[_Rows, "_Titles", bool]:
        """Rows, their titles, and whether any product is shown."""
        device, measure = self._model.device, self._timings.measure
        with measure("prefill", device):
            rows, hidden, shown = self._read(requests)
        with measure("title", device):
            return rows, self._write_titles(rows, hidden), shown

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

    def _write_titles(self, rows: _Rows, hidden: Tensor) -> "_Titles":
        """Each row's title, drawn until its check has no complaint."""
        size = len(rows.requests)
        titles = _Titles([[]] * size, [None] * size, [None] * size, [0] * size, [False] * size)
        self._draw_titles(rows, hidden, titles, range(size))
        refused = self._refused([r.check_title for r in rows.requests], [text or "" for text in titles.texts], range(size))
        titles.firsts = list(titles.texts)
        for attempt in range(1, self._sampling.attempts):
            if not refused:
                break
            self._draw_titles(rows, hidden, titles, refused, attempt)
            refused = self._refused([r.check_title for r in rows.requests], [text or "" for text in titles.texts], refused)
        for row in refused:
            template = rows.requests[row].template_title
            titles.are_templates[row] = template is not None and title_fits(
                self._model, self._prompter, rows.requests[row], template
            )
            titles.texts[row] = template if titles.are_templates[row] else titles.firsts[row]
        return titles

    def _draw_titles(self, rows: _Rows, hidden: Tensor, titles: "_Titles", which: Sequence[int], attempt: int = 0) -> None:
        """One attempt at the titles of some rows, from their prompts' ends; the others wait as they are."""
        if attempt:
            for row in which:
                self.slots.conditional.row(row).cut(len(rows.prompts[row]))
        with self._seeds_of(rows, which, attempt):
            written = self._writer.write(hidden, which, again=attempt > 0, held=self._held(rows, which) if attempt else None)
        for row in which:
            titles.cached[row], titles.attempts[row] = written[row], attempt
            titles.texts[row] = read_title(self._model, self._prompter, rows.requests[row], written[row])
        self._timings.title_steps += max(map(len, written))

    def _held(self, rows: _Rows, which: Sequence[int]) -> dict[int, OwnWords]:
        """The words that titles of some rows are held to when they are drawn again."""
        if not self._sampling.retry_own_words:
            return {}
        requests = {row: rows.requests[row] for row in which}
        return {row: OwnWords(self._prompter, (each.product_title, *each.selling_points)) for row, each in requests.items()}

    @contextmanager
    def _seeds_of(self, rows: _Rows, which: Sequence[int], attempt: int) -> Iterator[None]:
        """The seeds of an attempt of some rows; attempt 0 has the rows' own."""
        seeds = [request.seed for request in rows.requests]
        self.slots.seeds.copy_(torch.tensor([variant_seed(s, 0, attempt) if row in which else s for row, s in enumerate(seeds)]))
        yield
        self.slots.seeds.copy_(torch.tensor(seeds))

    def _refused(self, checks: Sequence[Callable | None], made: Sequence[Any], which: Sequence[int]) -> list[int]:
        """Which of some rows have a check that complains of what was made."""
        said = self._agree([checks[row] is not None and checks[row](made[row]) is not None for row in which])
        return [row for row, complains in zip(which, said, strict=True) if complains]

    def _paint(self, rows: _Rows, hidden: Tensor, shown: bool) -> tuple[Tensor, Tensor, list[int]]:
        """Codes (B, N), pictures (B, H, W, 3), and how often each was painted again, from hidden states (2B, D)."""
        ends = self.slots.conditional.cache.lengths.clone()
        attempts, checks = [0] * len(rows.requests), [request.check_picture for request in rows.requests]
        codes, pictures = self._paint_once(hidden, shown)
        refused = self._refused(checks, pictures, range(len(attempts)))
        for attempt in range(1, self._sampling.attempts):
            if not refused:
                break
            self.slots.conditional.cache.lengths.copy_(ends)
            with self._seeds_of(rows, refused, attempt):
                again = self._paint_once(hidden, shown)
            codes[refused], pictures[refused] = again[0][refused], again[1][refused]
            for row in refused:
                attempts[row] = attempt
            refused = self._refused(checks, pictures, refused)
        return codes, pictures, attempts

    def _paint_once(self, hidden: Tensor, shown: bool) -> tuple[Tensor, Tensor]:
        device, measure = self._model.device, self._timings.measure
        with measure("picture", device):
            codes = self._painter.paint(hidden, shown).clone()
        with measure("vq", device):
            pictures = self._decode(codes)
        self._timings.picture_steps += self._painter.num_steps
        return codes, pictures

    def _read_back(self, rows: _Rows, titles: "_Titles") -> tuple[Tensor, int]:
        """Titles as the tokenizer spells them; hidden states (B, D) at begin-of-image, and how many tokens lie before it."""
        model, prompter = self._model, self._prompter
        pictures = [prompter.picture_prompt(r.facts, t or "") for r, t in zip(rows.requests, titles.texts, strict=True)]
        self._make_room(max(map(len, pictures)) + model.config.image.tokens_per_picture)
        cached = [[*prompt.ids, *ids] for prompt, ids in zip(rows.prompts, titles.cached, strict=True)]
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
        # Plain attention asks the device for lengths, which a graph cannot.
        capture = self._settings.tensor_parallel == 1 and not self._off & {"attention", "captured step"}
        parts = (self._layers, self.slots, self._sampling, capture)
        self._writer = TitleWriter(self._model, self._prompter, *parts)
        self._painter = Painter(self._model, *parts, plain_draw="draw" in self._off)
