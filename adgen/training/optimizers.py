"""The optimizers: AdamW alone, or Muon for the matrices between hidden states and AdamW for the rest.

Muon (Jordan et al. 2024) steps along the orthogonalised momentum of a matrix, so that no direction of it is learned much
faster than another. It is torch's own; its rate is scaled so that a step is as long as AdamW's would be (Liu et al. 2025),
and one learning rate and one weight decay hold for both.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adgen.training.settings import OptimizerSettings

# Rows of these are entries of a vocabulary, each with its own statistics: no map between hidden states.
_HEADS = ("lm_head", "vision_head")


def make_optimizer(module: nn.Module, settings: OptimizerSettings) -> "torch.optim.Optimizer | CombinedOptimizer":
    """The optimizer of `settings.kind` over the trainable parameters; as published, everything decays."""
    if settings.kind == "adamw":
        return adamw(trainable_parameters(module), settings)
    matrices = hidden_matrices(module)
    chosen = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in trainable_parameters(module) if id(parameter) not in chosen]
    muon = [muon_over(matrices, settings)] if matrices else []
    return CombinedOptimizer(*muon, *([adamw(rest, settings)] if rest else []))


def adamw(parameters: list[Tensor], settings: OptimizerSettings) -> torch.optim.AdamW:
    """torch's AdamW."""
    own = settings
    return torch.optim.AdamW(parameters, lr=own.learning_rate, betas=own.betas, eps=own.eps, weight_decay=own.weight_decay)


def muon_over(matrices: list[Tensor], settings: OptimizerSettings) -> torch.optim.Muon:
    """torch's Muon, with AdamW's rate and decay."""
    return torch.optim.Muon(matrices, lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")


def trainable_parameters(module: nn.Module) -> list[Tensor]:
    """All that have a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def hidden_matrices(module: nn.Module) -> list[Tensor]:
    """Weights of the trainable linear layers, without the heads over a vocabulary."""
    return [
        layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad and not name.endswith(_HEADS)
    ]


class CombinedOptimizer:
    """Optimizers of different parameters, as one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Each part's step."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Of each part, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)
