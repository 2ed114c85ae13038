"""What the slots read before they paint: prompts, the products' pictures, and their own titles as the tokenizer spells them.

Shapes: B slots, T tokens of a prompt, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adgen.errors import ModelError
from adgen.generation.generate import Request, check_history, common_prefix
from adgen.generation.layers import StepLayers
from adgen.generation.prompt import Prompt, Prompter
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots import Slots
from adgen.model.uniadgen import UniAdGen


def check_request(model: UniAdGen, prompter: Prompter, request: Request, sampling: SamplingSettings) -> int:
    """Tokens that the request's row may come to hold. ModelError when that is more than the model has positions, or when its
    history has too many items or codes of another size."""
    if request.has_history:
        check_history(model.config, request)
    config = model.config
    # A title that never closes is replaced by an empty one, whose tags may take more tokens than were written.
    written = len(prompter.title_prompt(request.facts)) + sampling.max_title_tokens
    needed = max(written, len(prompter.picture_prompt(request.facts, ""))) + config.image.tokens_per_picture
    if needed > config.decoder.max_positions:
        raise ModelError(
            f"prompt, title and picture need {needed} positions, the model has {config.decoder.max_positions}: lower "
            f"sampling.max_title_tokens (now {sampling.max_title_tokens}), the history items, or the template's title limits"
        )
    return needed


def read_prompts(layers: StepLayers, slots: Slots, prompts: Sequence[Tensor]) -> Tensor:
    """Fill empty conditional rows with their embedded prompts, (T, D) each; hidden states (B, D) at the ends. Rows whose prompt is
    the same tensor, as variants of a pair have it, are read once and copied: a prompt is read alone, so the copy has the bits that
    reading it again would give."""
    read: dict[int, tuple[int, Tensor]] = {}
    ends = []
    for index, embeds in enumerate(prompts):
        row = slots.conditional.row(index)
        if id(embeds) in read:
            first, end = read[id(embeds)]
            row.copy_from(slots.conditional.row(first))
        else:
            end = layers.prefill(embeds, row)
            read[id(embeds)] = index, end
        ends.append(end)
    return torch.stack(ends)


def same_prompts(requests: Sequence[Request], noise: bool) -> list[int]:
    """For each request the first one that has its prompt: same facts and clicks, and where the history is noised the same seed."""
    first: dict[tuple, int] = {}
    keys = ((r.facts, r.history_codes.numpy().tobytes(), r.seed if noise else None) for r in requests)
    return [first.setdefault(key, index) for index, key in enumerate(keys)]


def show_products(model: UniAdGen, slots: Slots, requests: Sequence[Request], strength: float) -> bool:
    """Compute each different product's additions, once, and note which slot shows which; False when none shows any.

    A request without a condition picture gets additions of zeros.
    """
    pictures = {id(r.condition): r.condition for r in requests if r.condition is not None}
    if not pictures:
        return False
    numbers = {key: number for number, key in enumerate(pictures)}
    for key, picture in pictures.items():
        # One by one: a product's features do not change with the number of its neighbours.
        shown = model.foreground(picture[None].to(model.device, model.dtype))[:, 0] * strength
        slots.additions[:, numbers[key]] = shown
    if len(pictures) < slots.num_slots:
        slots.additions[:, len(pictures)] = 0
    slots.product.copy_(torch.tensor([numbers.get(id(r.condition), len(pictures)) for r in requests]))
    return True


def continue_prompts(
    layers: StepLayers,
    slots: Slots,
    cached: Sequence[Sequence[int]],
    pictures: Sequence[Prompt],
    embedded: Sequence[Tensor],
) -> Tensor:
    """Bring rows that hold a prompt and the title they wrote (`cached`, their ids) to their picture prompts (embedded (T, D)
    each); hidden states (B, D) at the ends.

    The published flow re-tokenises the title as text. A row's cache is cut back to the ids that it shares with its new
    prompt, and only the rest is read.
    """
    ends = []
    for index, (old, picture, embeds) in enumerate(zip(cached, pictures, embedded, strict=True)):
        row = slots.conditional.row(index)
        # One token is left to read at least. The last one written was never fed: the cache does not hold it.
        row.cut(min(common_prefix(old, picture.ids), len(picture) - 1, row.length))
        ends.append(layers.prefill(embeds[row.length :], row))
    return torch.stack(ends)
