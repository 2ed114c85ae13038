"""Which device computes: one place that decides."""


def pick_device(wanted: str) -> str:
    """ "cuda" or "cpu" for a setting: "auto" is the GPU where this process has one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
