"""A model in its dtype and place, and its decoder's layers through DeepSpeed inference. The only file that imports deepspeed, and
only when it is called.

DeepSpeed sees the layers and nothing else: token table, norm, heads, foreground and preference stay whole. Kernel
injection stays off. With more than one rank its AutoTP splits q, k, v, gate and up by output, o and down by input, and
adds the parts up over the group.
"""

import contextlib
import logging
import sys

import torch
from torch import nn

from adgen.errors import ModelError, SettingsError
from adgen.generation.engine_settings import EngineSettings
from adgen.model.config import DecoderConfig
from adgen.model.decoder import DecoderLayer
from adgen.model.device import warn_of_emulation
from adgen.model.lora import merge_lora
from adgen.model.uniadgen import UniAdGen

log = logging.getLogger(__name__)
# The linears whose outputs are partial sums on each rank; AutoTP splits all other linears of a layer by output.
SUMMED_LINEARS = ("self_attn.o_proj", "mlp.down_proj")


class _Layers(nn.Module):
    """The module that DeepSpeed sees. `config` has the number of key/value heads: without it, AutoTP cuts projections
    at multiples of 64 rows, in the middle of heads."""

    def __init__(self, layers: nn.ModuleList, config: DecoderConfig):
        super().__init__()
        self.layers = layers
        self.config = config


def place_model(model: UniAdGen, settings: EngineSettings, device: str | torch.device | None) -> bool:
    """Bring the model into its dtype and to its device (None: where it is), in place, through DeepSpeed if it is wanted and there;
    whether it is. SettingsError: ranks without DeepSpeed, or a dtype that the device has not."""
    device = torch.device(device or model.device)
    dtype = _dtype_on(device, settings)
    if model.config.lora is not None and settings.tensor_parallel == 1:
        # Projections are joined by their weights: unmerged updates would be lost.
        merge_lora(model.decoder)
        model.config = model.config.model_copy(update={"lora": None})
    if settings.deepspeed:
        try:
            wrap_decoder(model, dtype, settings.tensor_parallel, device)
            return True
        except ImportError as error:
            log.warning("DeepSpeed is not installed, the decoder runs without it (%s)", error)
    if settings.tensor_parallel > 1:
        raise SettingsError(f"engine.tensor_parallel {settings.tensor_parallel} needs DeepSpeed, which is off or not installed")
    model.to(device=device, dtype=dtype).requires_grad_(False)
    return False


def _dtype_on(device: torch.device, settings: EngineSettings) -> torch.dtype:
    if settings.cache_dtype != "same" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise SettingsError(f"engine.cache_dtype {settings.cache_dtype} needs a GPU of compute capability 8.9 or newer")
    warn_of_emulation(device, dtype := settings.torch_dtype(device))
    return dtype


def wrap_decoder(model: UniAdGen, dtype: torch.dtype, tensor_parallel: int = 1, device: str | torch.device | None = None) -> None:
    """Put the model's decoder layers through `deepspeed.init_inference`, in place, and the rest of the model in the same
    dtype and on the same device (None: where it is).

    tensor_parallel > 1 needs torch.distributed, initialised with exactly that many ranks; each rank calls this with the
    same model and keeps its share. Raises ImportError without deepspeed; SettingsError when the heads cannot be shared
    out; ModelError for unmerged low-rank updates.
    """
    device = torch.device(device if device is not None else model.device)
    if tensor_parallel > 1:
        _require_splittable(model, tensor_parallel)
    deepspeed = _import_quietly()
    settings = {"dtype": dtype, "replace_with_kernel_inject": False, "keep_module_on_host": device.type == "cpu"}
    if tensor_parallel > 1:
        settings["tensor_parallel"] = _parallel_settings(deepspeed, tensor_parallel)
        settings["injection_policy"] = {DecoderLayer: SUMMED_LINEARS}
    # It prints, and stdout belongs to whoever runs the job; it moves layers to the current CUDA device.
    here = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with contextlib.redirect_stdout(sys.stderr), here:
        deepspeed.init_inference(_Layers(model.decoder.layers, model.config.decoder), config=settings)
    model.to(device=device, dtype=dtype).requires_grad_(False)


class _Group:
    """The ranks' process group, in the form in which DeepSpeed asks for one. Given a group, DeepSpeed does not make its
    own, whose timeout would be torch's half hour."""

    def get_model_parallel_group(self) -> torch.distributed.ProcessGroup:
        return torch.distributed.group.WORLD


def _parallel_settings(deepspeed, tensor_parallel: int) -> dict:
    # Its shared-memory all-reduce crashes where LOCAL_SIZE is not set, and hangs when a peer dies. It must be off before
    # the first use of deepspeed.comm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with contextlib.redirect_stdout(sys.stderr):
        deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
    return {"tp_size": tensor_parallel, "mpu": _Group(), "tp_group": torch.distributed.group.WORLD}


def _import_quietly():
    """deepspeed, with its loggers, which bind stdout when they are made, on stderr and at warnings."""
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def _require_splittable(model: UniAdGen, ranks: int) -> None:
    heads = model.config.decoder.num_key_value_heads
    if heads % ranks:
        raise SettingsError(f"engine.tensor_parallel {ranks} does not divide the model's {heads} key/value heads")
    if model.config.lora is not None:
        # AutoTP would take a LoRALinear for a plain one and drop its update without a word.
        raise ModelError("the model has unmerged low-rank updates, which cannot be split over ranks: merge them first")
