"""The title: one token a slot and step, until each row has closed its own.

Shapes: B slots, D hidden size, V vocabulary.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from adgen.generation.captured import CapturedStep
from adgen.generation.generate import title_ended
from adgen.generation.layers import StepLayers
from adgen.generation.own_words import OwnWords
from adgen.generation.prompt import Prompter
from adgen.generation.sampling import TITLE, draw_tokens
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots import Slots
from adgen.model.uniadgen import UniAdGen


class TitleWriter:
    """Writes the slots' titles."""

    def __init__(
        self,
        model: UniAdGen,
        prompter: Prompter,
        layers: StepLayers,
        slots: Slots,
        sampling: SamplingSettings,
        capture: bool = True,
    ):
        """capture: on a CUDA device, replay the step as one graph."""
        self._model, self._prompter, self._layers = model, prompter, layers
        self._slots, self._sampling = slots, sampling
        self._read = CapturedStep(self._read_token, slots.hidden.device, slots.state, capture)

    def write(
        self,
        hidden: Tensor,
        rows: Iterable[int] | None = None,
        again: bool = False,
        held: Mapping[int, OwnWords] | None = None,
    ) -> list[list[int]]:
        """Tokens of each row's title, from hidden states (B, D) at the prompts' ends; of `rows` alone (None: all), while the others
        wait. again: at the temperature and the length of a title that is drawn again. held: rows that say only such words.

        A row stops at its closing tag or at the end of sentence, and waits: its cache does not grow and costs nothing,
        while the shape of the step, and so the rounding of the rows that still write, stays as it is.
        """
        slots, sampling = self._slots, self._sampling
        longest = min(sampling.retry_title_tokens, sampling.max_title_tokens) if again else sampling.max_title_tokens
        temperature = sampling.title_temperature or (sampling.retry_temperature if again else 0.0)
        slots.hidden.copy_(hidden)
        written: list[list[int]] = [[] for _ in range(slots.num_slots)]
        running = set(range(slots.num_slots) if rows is None else rows)
        slots.conditional.active.copy_(torch.tensor([row in running for row in range(slots.num_slots)]))
        for step in range(longest):
            chosen = self._draw(step, temperature, {row: held[row] for row in running if row in held} if held else {})
            for row in running:
                written[row].append(chosen[row])
            ended = {row for row in running if title_ended(self._prompter, written[row])}
            running -= ended
            if not running or step == longest - 1:
                break
            if ended:
                slots.conditional.active[torch.tensor(sorted(ended), device=hidden.device)] = False
            self._read()
        return written

    def _draw(self, step: int, temperature: float, held: Mapping[int, OwnWords]) -> list[int]:
        slots, top_k = self._slots, self._sampling.title_top_k
        logits = self._model.text_logits(slots.hidden)
        for row, words in held.items():
            logits[row] += words.bias(logits.shape[-1]).to(logits)
        slots.code.copy_(draw_tokens(logits, slots.seeds, step, TITLE, temperature, top_k))
        chosen = slots.code.tolist()
        for row, words in held.items():
            words.read(chosen[row])
        return chosen

    def _read_token(self) -> None:
        embeds = self._model.decoder.embed_tokens(self._slots.code)
        self._slots.hidden.copy_(self._layers.step(embeds, (self._slots.conditional,)))
