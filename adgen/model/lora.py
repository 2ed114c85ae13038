"""Low-rank updates on the decoder's projections: kept apart from the frozen weight, or merged into it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.model.config import LoRAConfig


class LoRALinear(nn.Linear):
    """y = W x + scale * B (A x); starts as W alone, since B starts at zero."""

    def __init__(self, base: nn.Linear, config: LoRAConfig):
        factory = {"device": base.weight.device, "dtype": base.weight.dtype}
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, **factory)
        self.weight, self.bias = base.weight, base.bias
        self.scale = config.alpha / config.rank
        self.lora_A = nn.Parameter(torch.empty(config.rank, base.in_features, **factory))
        self.lora_B = nn.Parameter(torch.empty(base.out_features, config.rank, **factory))
        self.reset_lora()

    def reset_lora(self, generator: torch.Generator | None = None) -> None:
        """A uniform as a linear layer's default, B zero."""
        if not self.lora_A.is_meta:
            nn.init.kaiming_uniform_(self.lora_A, a=5**0.5, generator=generator)
            nn.init.zeros_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)

    def merged(self) -> nn.Linear:
        """A plain linear with the update added to its weight, in fp32 and then rounded once."""
        update = self.scale * (self.lora_B.float() @ self.lora_A.float())
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight = nn.Parameter((self.weight.float() + update).to(self.weight.dtype), requires_grad=False)
        plain.bias = self.bias
        return plain


def add_lora(decoder: nn.Module, config: LoRAConfig) -> None:
    """Replace the decoder's target projections by LoRALinear, their weights kept."""
    for parent, name, child in _named_linears(decoder):
        if name in config.targets and not isinstance(child, LoRALinear):
            setattr(parent, name, LoRALinear(child, config))


@torch.no_grad()
def merge_lora(decoder: nn.Module) -> None:
    """Replace every LoRALinear by a plain linear that computes the same."""
    for parent, name, child in _named_linears(decoder):
        if isinstance(child, LoRALinear):
            setattr(parent, name, child.merged())


def _named_linears(root: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    return [
        (parent, name, child)
        for parent in root.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]
