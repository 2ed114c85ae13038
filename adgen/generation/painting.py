"""The picture: one image token a slot and step, all of it on the device.

Shapes: B slots, 2B rows (conditional, then unconditional), N image tokens, V codes, D hidden size.
"""

from functools import partial

import torch
from torch import Tensor

from adgen.generation.captured import CapturedStep
from adgen.generation.layers import StepLayers
from adgen.generation.sampling import draw_codes
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots import Slots
from adgen.model.uniadgen import UniAdGen


class Painter:
    """Draws the slots' pictures. Embeddings of all image tokens are computed once."""

    def __init__(
        self,
        model: UniAdGen,
        layers: StepLayers,
        slots: Slots,
        sampling: SamplingSettings,
        capture: bool = True,
        plain_draw: bool = False,
    ):
        """capture: on a CUDA device, replay the step as one graph. plain_draw: draw without a kernel."""
        self._plain_draw = plain_draw
        self._layers, self._slots, self._sampling = layers, slots, sampling
        self._head = model.image_head
        with torch.inference_mode():
            self._table = model.image_embedding.table()  # (V, D)
        device = self._table.device
        self._steps = {shown: CapturedStep(partial(self._step, shown), device, slots.state, capture) for shown in (False, True)}

    @property
    def num_steps(self) -> int:
        """Steps of a picture, the first of which draws from the prompt's end and reads nothing."""
        return self._slots.num_tokens

    def paint(self, hidden: Tensor, with_additions: bool, num_steps: int | None = None) -> Tensor:
        """Codes (B, N), or the first num_steps of them, from hidden states (2B, D) at begin-of-image.

        Image token 0 is drawn without foreground control; the position that reads token j receives addition j, in both
        halves (docs/design.md 6.7).
        """
        self._slots.start_pictures()
        self._draw(hidden)
        step = self._steps[with_additions]
        for _ in range((num_steps or self.num_steps) - 1):
            step()
        return self._slots.codes[:, :num_steps]

    def _step(self, with_additions: bool) -> None:
        """Read the last code, draw the next: no value comes back to the host."""
        slots = self._slots
        embeds = self._table[slots.code].repeat(2, 1)
        additions = slots.additions[:, slots.product, slots.steps - 1].repeat(1, 2, 1) if with_additions else None
        self._draw(self._layers.step(embeds, (slots.conditional, slots.unconditional), additions))

    def _draw(self, hidden: Tensor) -> None:
        slots = self._slots
        draw_codes(self._head(hidden), slots.seeds, slots.steps, self._sampling, slots.code, self._plain_draw)
        slots.codes.scatter_(1, slots.steps[:, None], slots.code[:, None])
        slots.steps += 1
