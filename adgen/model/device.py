"""Which device computes: one place that decides."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def pick_device(wanted: str) -> str:
    """`auto` is the GPU where this process has one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
