"""The title: one token a slot and step, until each row has closed its own.

Shapes: B slots, D hidden size, V vocabulary.
"""

import torch
from torch import Tensor

from adgen.generation.layers import StepLayers
from adgen.generation.prompt import Prompter
from adgen.generation.sampling import TITLE, SamplingSettings, draw_tokens
from adgen.generation.slots import Slots
from adgen.model.uniadgen import UniAdGen


def write_titles(
    model: UniAdGen, prompter: Prompter, layers: StepLayers, slots: Slots, hidden: Tensor, sampling: SamplingSettings
) -> list[list[int]]:
    """Tokens of each row's title, from hidden states (B, D) at the prompts' ends.

    A row stops at its closing tag or at the end of sentence, and waits: its cache does not grow and costs nothing, while
    the shape of the step, and so the rounding of the rows that still write, stays as it is.
    """
    written: list[list[int]] = [[] for _ in range(slots.num_slots)]
    running = set(range(slots.num_slots))
    for step in range(sampling.max_title_tokens):
        tokens = draw_tokens(model.text_logits(hidden), slots.seeds, step, TITLE, sampling.title_temperature, sampling.title_top_k)
        chosen = tokens.tolist()
        for row in running:
            written[row].append(chosen[row])
        ended = {row for row in running if title_ended(prompter, written[row])}
        running -= ended
        if not running or step == sampling.max_title_tokens - 1:
            break
        if ended:
            slots.conditional.active[torch.tensor(sorted(ended), device=hidden.device)] = False
        hidden = layers.step(model.decoder.embed_tokens(tokens), (slots.conditional,))
    return written


def title_ended(prompter: Prompter, written: list[int]) -> bool:
    """Whether the closing tag or the end of sentence is written."""
    return written[-1] == prompter.eos_id or prompter.read_title(written) is not None
