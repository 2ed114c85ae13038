"""Which device computes, and in which dtype: one place that decides."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")
"""What `torch.cpu.get_capabilities` calls a processor's own products of bfloat16: x86, then ARM."""


def pick_device(wanted: str) -> str:
    """ "cuda" or "cpu" for a setting: "auto" is the GPU where this process has one."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def computing_dtype(device: "torch.device", dtype: "torch.dtype") -> "torch.dtype":
    """What a device multiplies numbers of `dtype` as: a CPU without bfloat16 or float16 of its own widens them to float32."""
    import torch

    if device.type != "cpu" or dtype.itemsize >= 4:
        return dtype
    can = torch.cpu.get_capabilities()
    known = {torch.bfloat16: _BFLOAT16, torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith")}.get(dtype, ())
    return dtype if any(can.get(name) for name in known) else torch.float32


def warn_of_emulation(device: "torch.device", dtype: "torch.dtype") -> None:
    """Say so where a device has no arithmetic of its own for a dtype: that is slower than the one it computes in."""
    if (computes := computing_dtype(device, dtype)) is not dtype:
        names = [str(each).removeprefix("torch.") for each in (dtype, computes)]
        log.warning("this CPU computes %s as %s, which is slower than engine.dtype %s", *names, names[1])
