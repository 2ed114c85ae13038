"""What the slots read before they paint: prompts, the products' pictures, and their own titles as the tokenizer spells them.

Shapes: B slots, T tokens of a prompt, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adgen.errors import ModelError
from adgen.generation.generate import Request, check_codes, common_prefix, embed
from adgen.generation.layers import StepLayers
from adgen.generation.prompt import Prompt, Prompter
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots import Slots
from adgen.model.uniadgen import UniAdGen


def check_request(model: UniAdGen, prompter: Prompter, request: Request, sampling: SamplingSettings) -> int:
    """Tokens that the request's row may come to hold. ModelError when that is more than the model has positions, or when its
    history has codes of another size."""
    if request.has_history:
        check_codes(model.config, request)
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


@dataclass(frozen=True)
class Reading:
    """What a row reads of its prompt: the embeddings (T, D) and the RoPE positions (T,) of the tokens that are not left out."""

    embeds: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)


def reading(model: UniAdGen, prompt: Prompt, history: Tensor, kept: Tensor | None = None) -> Reading:
    """A whole prompt, or without the history rows that are False in kept (R,). A token that stays keeps its position, so
    attention among the others is as it was."""
    embeds = embed(model, prompt, history)
    positions = torch.arange(len(prompt), device=embeds.device)
    if kept is None:
        return Reading(embeds, positions)
    positions = positions[[index for index, slot in enumerate(prompt.slots) if slot < 0 or kept[slot]]]
    return Reading(embeds[positions], positions)


def read_prompts(layers: StepLayers, slots: Slots, readings: Sequence[Reading]) -> Tensor:
    """Fill empty conditional rows with their prompts; hidden states (B, D) at the ends."""
    ends = []
    for row, read in enumerate(readings):
        ends.append(layers.prefill(read.embeds, slots.conditional.row(row), read.positions))
        slots.conditional.offsets[row] = read.positions[-1] + 1 - len(read)
    return torch.stack(ends)


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
    readings: Sequence[Reading],
) -> Tensor:
    """Bring rows that hold a prompt and the title they wrote (`cached`, their ids) to their picture prompts; hidden states
    (B, D) at the ends.

    The published flow re-tokenises the title as text. A row's cache is cut back to the ids that it shares with its new
    prompt, and only the rest is read.
    """
    ends = []
    for index, (old, picture, read) in enumerate(zip(cached, pictures, readings, strict=True)):
        row = slots.conditional.row(index)
        shared = int((read.positions < common_prefix(old, picture.ids)).sum())
        # One token is left to read at least. The last one written was never fed: the cache does not hold it.
        row.cut(min(shared, len(read) - 1, row.length))
        ends.append(layers.prefill(read.embeds[row.length :], row, read.positions[row.length :]))
    return torch.stack(ends)
