"""What the slots read before they paint: prompts, the products' pictures, and their own titles as the tokenizer spells them.

Shapes: B slots, T tokens of a prompt, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adgen.errors import ModelError
from adgen.generation.generate import Request, common_prefix, embed
from adgen.generation.layers import StepLayers
from adgen.generation.prompt import Prompt
from adgen.generation.sampling import SamplingSettings
from adgen.generation.slots import Slots
from adgen.model.config import ModelConfig
from adgen.model.uniadgen import UniAdGen


def require_room(config: ModelConfig, prompts: Sequence[Prompt], sampling: SamplingSettings) -> int:
    """Tokens that the longest row may come to hold. ModelError when that is more than the model has positions."""
    needed = max(map(len, prompts)) + sampling.max_title_tokens + config.image.tokens_per_picture
    if needed > config.decoder.max_positions:
        raise ModelError(
            f"prompt, title and picture need {needed} positions, the model has {config.decoder.max_positions}: lower "
            f"sampling.max_title_tokens (now {sampling.max_title_tokens}), the history items, or the template's title limits"
        )
    return needed


def read_prompts(layers: StepLayers, slots: Slots, embeds: Sequence[Tensor]) -> Tensor:
    """Fill empty conditional rows with their prompts (T_b, D); hidden states (B, D) at the ends."""
    positions = torch.arange(max(map(len, embeds)), device=embeds[0].device)
    return torch.stack(
        [layers.prefill(prompt, slots.conditional.row(row), positions[: len(prompt)]) for row, prompt in enumerate(embeds)]
    )


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
    model: UniAdGen,
    layers: StepLayers,
    slots: Slots,
    prompts: Sequence[Prompt],
    written: Sequence[Sequence[int]],
    pictures: Sequence[Prompt],
    histories: Sequence[Tensor],
) -> Tensor:
    """Bring rows that hold a prompt and the title they wrote to their picture prompts; hidden states (B, D) at the ends.

    The published flow re-tokenises the title as text. A row's cache is cut back to the ids that it shares with its new
    prompt, and only the rest is read.
    """
    ends = []
    for index, (prompt, ids, picture, history) in enumerate(zip(prompts, written, pictures, histories, strict=True)):
        row = slots.conditional.row(index)
        # One token is left to read at least. The last one written was never fed: the cache does not hold it.
        shared = common_prefix([*prompt.ids, *ids], picture.ids)
        row.cut(min(shared, len(picture) - 1, row.length))
        positions = torch.arange(row.length, len(picture), device=model.device)
        ends.append(layers.prefill(embed(model, picture, history)[row.length :], row, positions))
    return torch.stack(ends)
