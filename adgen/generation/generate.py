"""The simple loop: title, then picture, one continuing cache. It is written to be correct, not fast: the engine must give the same.
`Request` and `Result` are the engine's, too.

A row is a request. Rows start at position 0 and have their own length; nothing is padded on the left, and what one row
holds never reaches another.

Shapes: B requests, V logits, L additions, N image tokens of a picture, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adgen.errors import ModelError
from adgen.generation.prompt import Prompt, Prompter, PromptFacts
from adgen.generation.sampling import PICTURE, TITLE, guided, gumbel_noise, sample
from adgen.generation.sampling_settings import SamplingSettings
from adgen.model.config import ModelConfig
from adgen.model.decoder import KeyValueCache
from adgen.model.image_tokens import to_uint8
from adgen.model.uniadgen import UniAdGen


@dataclass(frozen=True)
class Request:
    """One creative to make."""

    product_title: str
    seed: int
    """0 <= seed < 2**63; keys all of this row's noise."""
    selling_points: tuple[str, ...] = ()
    history_titles: tuple[str, ...] = ()
    history_codes: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    """(n, tokens_per_history_picture) codes of the drawn clicks' pictures; (0, 0) for none."""
    condition: Tensor | None = None
    """(3, S, S) product on white in [-1, 1]; None leaves the foreground path out."""
    template_title: str | None = None
    """The title where no attempt passes its check; None keeps the first one that was drawn."""
    check_title: Callable[[str], str | None] | None = field(default=None, compare=False)
    """What is wrong with a title (None: nothing), a pure function: such a title is drawn again. It stays in this process: of
    several ranks the leader asks it. The simple loop asks none."""
    check_picture: Callable[[Tensor], str | None] | None = field(default=None, compare=False)
    """The same of a picture (H, W, 3) uint8, which is painted again."""

    @property
    def has_history(self) -> bool:
        """Whether anything of it is personal."""
        return len(self.history_codes) + len(self.history_titles) > 0

    @property
    def facts(self) -> PromptFacts:
        """What the prompt says of it."""
        return PromptFacts(self.product_title, self.selling_points, self.history_titles, len(self.history_codes))


@dataclass(frozen=True)
class Result:
    """A creative as the model makes it: the background with the product as the model sees it, not yet pasted."""

    title: str
    title_closed: bool
    """False: the model never ended its title, which is therefore empty."""
    codes: Tensor
    """(N,) int64 image tokens, raster order."""
    picture: Tensor
    """(H, W, 3) uint8."""
    num_slots: int
    """Rows of the batch it ran in, itself and dummy rows included: the same number gives the same bytes again."""
    title_attempt: int = 0
    """How often its title was drawn again."""
    picture_attempt: int = 0
    """How often its picture was painted again."""
    is_template: bool = False
    """Whether no attempt at its title passed, and `template_title` stands in for it."""
    kernels_off: str = ""
    """Kernels that were switched off when it was made, with commas between them."""


@dataclass(frozen=True)
class TitleResult:
    """A title without a picture."""

    first: str
    """As it was drawn first, before any check; empty where the model never ended it."""
    title: str
    """The one that stays."""
    is_template: bool


@torch.inference_mode()
def generate(
    model: UniAdGen, prompter: Prompter, requests: Sequence[Request], sampling: SamplingSettings | None = None
) -> list[Result]:
    """A title and a picture for each request, in order. The batch is as large as the list: split it before."""
    if not requests:
        return []
    sampling = sampling or SamplingSettings()
    seeds = torch.tensor([request.seed for request in requests], device=model.device)
    histories = [embed_history(model, prompter, request, sampling.preference_noise) for request in requests]
    prompts = [prompter.title_prompt(request.facts) for request in requests]
    cache = new_cache(model, prompts, sampling)

    hidden = prefill(model, cache, [embed(model, p, h) for p, h in zip(prompts, histories, strict=True)])
    written = write_titles(model, prompter, cache, hidden, seeds, sampling)
    titles = [read_title(model, prompter, r, ids) for r, ids in zip(requests, written, strict=True)]
    pictures = [prompter.picture_prompt(r.facts, t or "") for r, t in zip(requests, titles, strict=True)]

    cached = [list(p.ids) + ids for p, ids in zip(prompts, written, strict=True)]
    kept = cut_back(cache, cached, pictures)
    cache = with_unconditional_rows(model, cache, pictures, negative := prompter.negative_prompt())
    rest = [embed(model, p, h)[n:] for p, h, n in zip(pictures, histories, kept, strict=True)]
    hidden = torch.cat(
        (
            prefill(model, cache.rows(0, len(requests)), rest),
            prefill(model, cache.rows(len(requests), 2 * len(requests)), [embed(model, negative, None)] * len(requests)),
        )
    )

    additions = foreground_additions(model, requests, sampling.control_strength)
    steps = paint(model, cache, hidden, additions, seeds, sampling)
    codes = torch.stack([step.codes for step in steps], dim=1)
    painted = to_uint8(model.image_tokenizer.decode(codes))
    return [
        Result(title or "", title is not None, row, picture, len(requests))
        for title, row, picture in zip(titles, codes.cpu(), painted.cpu(), strict=True)
    ]


# -- the prompt ------------------------------------------------------------------------------------------------------


def embed_history(model: UniAdGen, prompter: Prompter, request: Request, noise: bool = False) -> Tensor:
    """The rows (R, D) that fill a request's history slots: pictures' tokens, then titles', and the style embedding last, if any."""
    if not request.has_history:
        return torch.zeros(0, model.config.decoder.hidden_size, device=model.device, dtype=model.dtype)
    tokens = history_tokens(model, prompter, request)
    return torch.cat(model.embed_history(*tokens, noise, _preference_generator(request, noise)), dim=1)[0]


def history_tokens(model: UniAdGen, prompter: Prompter, request: Request) -> tuple[Tensor, Tensor]:
    """Codes (1, N, Ti) and title tokens (1, Nt, Tt) of a request's history. ModelError for codes of another size."""
    num_pictures, num_titles = len(request.history_codes), len(request.history_titles)
    expected = check_history(model.config, request)
    codes = request.history_codes.to(model.device).reshape(1, num_pictures, expected)
    ids = [prompter.history_title_ids(title) for title in request.history_titles]
    size = model.config.preference.tokens_per_title
    return codes, torch.tensor(ids, device=model.device, dtype=torch.int64).reshape(1, num_titles, size)


def check_history(config: ModelConfig, request: Request) -> int:
    """Codes that a history picture must have; ModelError when the request's have another number, or when it shows more items than
    the model was made for."""
    items = max(len(request.history_codes), len(request.history_titles))
    if items > config.history_items:
        raise ModelError(f"a request shows {items} clicked products, this model takes {config.history_items} at most")
    expected = config.image.tokens_per_history_picture
    if len(request.history_codes) and request.history_codes.shape[1] != expected:
        raise ModelError(f"a history picture has {request.history_codes.shape[1]} codes, this model needs {expected}")
    return expected


def _preference_generator(request: Request, noise: bool) -> torch.Generator | None:
    return torch.Generator().manual_seed(request.seed) if noise else None


def embed(model: UniAdGen, prompt: Prompt, history: Tensor | None) -> Tensor:
    """A prompt's embeddings (T, D), its slots filled with the rows of history (R, D)."""
    ids = torch.tensor([prompt.ids], device=model.device)
    slots = torch.tensor([prompt.slots], device=model.device)
    if history is None:
        history = torch.zeros(0, model.config.decoder.hidden_size, device=model.device, dtype=model.dtype)
    return model.embed_prompt(ids, slots, history[None])[0]


def prefill(model: UniAdGen, cache: KeyValueCache, embeds: Sequence[Tensor]) -> Tensor:
    """Append each row's embeddings (T_b, D), T_b >= 1, to its cache row; the hidden state (B, D) at each row's end."""
    lengths = torch.tensor([len(e) for e in embeds], device=model.device)
    padded = torch.nn.utils.rnn.pad_sequence(list(embeds), batch_first=True)
    hidden = model.decoder.extend(padded, cache, num_new=lengths)
    return hidden[torch.arange(len(embeds), device=model.device), lengths - 1]


def cut_back(cache: KeyValueCache, cached: Sequence[Sequence[int]], prompts: Sequence[Prompt]) -> list[int]:
    """Cut each row's cache to the ids it shares with its new prompt, one short of the whole at most; their numbers.

    The published flow re-tokenises the title as text; where its tokens differ from the ones that were generated, the
    cache must forget them.
    """
    kept = [min(common_prefix(old, new.ids), len(new.ids) - 1) for old, new in zip(cached, prompts, strict=True)]
    # The last written token may not have been fed yet: its position is not in the cache.
    kept = [min(n, int(length)) for n, length in zip(kept, cache.lengths, strict=True)]
    cache.truncate(torch.tensor(kept, device=cache.lengths.device))
    return kept


# -- title -----------------------------------------------------------------------------------------------------------


def write_titles(
    model: UniAdGen,
    prompter: Prompter,
    cache: KeyValueCache,
    hidden: Tensor,
    seeds: Tensor,
    sampling: SamplingSettings,
) -> list[list[int]]:
    """Tokens of each row's title, from hidden states (B, D) at the prompts' ends; stops a row at its closing tag or end of
    sentence. A finished row waits: its cache does not grow."""
    written: list[list[int]] = [[] for _ in seeds]
    running = list(range(len(seeds)))
    for step in range(sampling.max_title_tokens):
        logits = model.text_logits(hidden)
        noise = gumbel_noise(seeds, step, TITLE, logits.shape[-1]) if sampling.title_temperature else None
        tokens = sample(logits, sampling.title_temperature, noise, sampling.title_top_k)
        for row in running:
            written[row].append(int(tokens[row]))
        running = [row for row in running if not title_ended(prompter, written[row])]
        if not running or step == sampling.max_title_tokens - 1:
            break
        grows = torch.zeros_like(seeds)
        grows[running] = 1
        hidden = model.decoder.extend(model.decoder.embed_tokens(tokens)[:, None], cache, num_new=grows)[:, 0]
    return written


def read_title(model: UniAdGen, prompter: Prompter, request: Request, written: list[int]) -> str | None:
    """The title that was written; None when it never closed, or when its text alone would leave no room for the picture."""
    title = prompter.read_title(written)
    return title if title is not None and title_fits(model, prompter, request, title) else None


def title_fits(model: UniAdGen, prompter: Prompter, request: Request, title: str) -> bool:
    """Whether a picture has room behind this title."""
    room = model.config.decoder.max_positions - model.config.image.tokens_per_picture
    return len(prompter.picture_prompt(request.facts, title)) <= room


def title_ended(prompter: Prompter, written: list[int]) -> bool:
    """Whether the closing tag or the end of sentence is written."""
    return written[-1] == prompter.eos_id or prompter.read_title(written) is not None


# -- picture ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PictureStep:
    """One image token of every row, and what it was drawn from."""

    codes: Tensor  # (B,)
    conditional: Tensor  # (B, V) logits
    unconditional: Tensor  # (B, V) logits


def paint(
    model: UniAdGen,
    cache: KeyValueCache,
    hidden: Tensor,
    additions: Tensor | None,
    seeds: Tensor,
    sampling: SamplingSettings,
) -> Iterator[PictureStep]:
    """The N steps of a picture, from hidden states (2B, D) at begin-of-image: B conditional rows, then B unconditional ones.

    Image token 0 is drawn without foreground control. The position that reads token j receives addition j, in both
    halves (docs/design.md 6.7). additions (L, B, N, D), strength folded in, or None.
    """
    num_tokens = model.config.image.tokens_per_picture
    for step in range(num_tokens):
        conditional, unconditional = model.image_logits(hidden).chunk(2)
        noise = gumbel_noise(seeds, step, PICTURE, conditional.shape[-1]) if sampling.picture_temperature else None
        logits = guided(conditional, unconditional, sampling.guidance)
        codes = sample(logits, sampling.picture_temperature, noise, sampling.picture_top_k, sampling.picture_top_p)
        yield PictureStep(codes, conditional, unconditional)
        if step == num_tokens - 1:
            return
        addition = None if additions is None else additions[:, :, step : step + 1].repeat(1, 2, 1, 1)
        embeds = model.image_embedding(codes).repeat(2, 1)[:, None]
        hidden = model.decoder.extend(embeds, cache, additions=addition)[:, 0]


def foreground_additions(model: UniAdGen, requests: Sequence[Request], strength: float) -> Tensor | None:
    """The products' additions (L, B, N, D) times strength; a request without a condition picture gets zeros."""
    shown = [row for row, request in enumerate(requests) if request.condition is not None]
    if not shown:
        return None
    pixels = torch.stack([requests[row].condition for row in shown]).to(model.device, model.dtype)
    some = model.foreground(pixels) * strength
    additions = some.new_zeros(some.shape[0], len(requests), *some.shape[2:])
    additions[:, shown] = some
    return additions


# -- caches ----------------------------------------------------------------------------------------------------------


def new_cache(model: UniAdGen, prompts: Sequence[Prompt], sampling: SamplingSettings) -> KeyValueCache:
    """Room for the prompts and their titles. ModelError when prompt, title and picture can't fit the model's positions."""
    titled = max(map(len, prompts)) + sampling.max_title_tokens
    needed = titled + model.config.image.tokens_per_picture
    if needed > model.config.decoder.max_positions:
        raise ModelError(
            f"prompt, title and picture need {needed} positions, the model has {model.config.decoder.max_positions}: lower "
            f"sampling.max_title_tokens (now {sampling.max_title_tokens}), the history items, or the template's title limits"
        )
    return model.decoder.new_cache(len(prompts), titled, model.device, model.dtype)


def with_unconditional_rows(model: UniAdGen, cache: KeyValueCache, pictures: Sequence[Prompt], negative: Prompt) -> KeyValueCache:
    """The same B rows followed by B empty ones, with room for the longest prompt and its picture."""
    # `prefill` pads each row's missing tokens to the longest of them, after the tokens that the row already holds.
    kept = cache.lengths.tolist()
    prefilled = max(kept) + max(len(prompt) - n for prompt, n in zip(pictures, kept, strict=True))
    capacity = max(prefilled, max(len(negative), *map(len, pictures)) + model.config.image.tokens_per_picture)
    both = model.decoder.new_cache(2 * len(pictures), capacity, model.device, model.dtype)
    both.rows(0, len(pictures)).copy_from(cache)
    return both


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements a and b begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
