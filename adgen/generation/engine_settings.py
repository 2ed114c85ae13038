"""How an engine runs, as settings; and how many creatives it makes at once. Methods import torch; importing this file does not, so
that a job's settings are read without it."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from tyro.conf import Suppress

from adgen.config import Removed, Settings

if TYPE_CHECKING:
    import torch

    from adgen.model.config import ModelConfig

WeightType = Literal["same", "int8", "float8_e4m3fn"]
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]

ENGINE_VERSION = "2"
"""Changes whenever the same request may give another creative; part of every fingerprint."""
CPU_SLOTS = 4
"""On a CPU eight rows already keep the matrix units busy (two Zen 5 cores): more slots only add memory."""


KernelName = Literal["attention", "draw", "captured step"]
"""What has a plain path beside it: attention of a step, the draw of an image token with its guidance, a step as one CUDA graph."""


class EngineSettings(Settings):
    """How the model runs. What it draws is not decided here (SamplingSettings), but dtype and num_slots may change the
    last bits of a logit, so both are recorded."""

    ADDED = frozenset({"switch_off"})
    REMOVED: ClassVar = {"drop_masked_history": Removed(False, "0.2.0"), "speculation": Removed(1, "0.2.0")}

    num_slots: int | None = Field(None, ge=1)
    """Creatives that are made at once; default what the device's memory holds (4 on a CPU). Fixed for a run, and halved when
    memory does not suffice after all."""
    dtype: DTypeName = "auto"
    """Of weights and activations; auto: bfloat16 on a GPU, float32 on a CPU."""
    cache_dtype: Literal["same", "float8_e4m3fn"] = "same"
    """Of keys and values; float8 halves memory and traffic, and is not lossless."""
    weights: WeightType = "same"
    """Of the decoder's linears and the heads (torchao); 8 bits are not lossless."""
    tensor_parallel: int = Field(1, ge=1)
    """Ranks that share one decoder; must divide the model's key/value heads."""
    deepspeed: bool = True
    """Run the decoder layers through DeepSpeed inference. Without it, or where it is not installed, one rank runs plainly."""
    switch_off: Annotated[tuple[KernelName, ...], Suppress] = ()
    """Kernels that are not used. On a GPU an engine switches off by itself what differs from the plain path."""
    timeout_seconds: float = Field(60, gt=0)
    """A rank that keeps the others waiting longer has failed."""
    start_timeout_seconds: float = Field(600, gt=0)
    """How long a rank that has loaded its model waits for the others."""

    def torch_dtype(self, device: "str | torch.device") -> "torch.dtype":
        """The dtype itself, on such a device."""
        import torch

        if self.dtype == "auto":
            return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        return getattr(torch, self.dtype)

    def torch_cache_dtype(self, device: "str | torch.device") -> "torch.dtype":
        """The cache's dtype itself."""
        import torch

        return self.torch_dtype(device) if self.cache_dtype == "same" else getattr(torch, self.cache_dtype)

    def slots_on(self, device: "torch.device", config: "ModelConfig", capacity: int) -> int:
        """num_slots, or what the device's memory holds when a conditional row has `capacity` tokens."""
        import torch

        if self.num_slots is not None:
            return self.num_slots
        if device.type != "cuda":
            return CPU_SLOTS
        return self.slots_in(torch.cuda.get_device_properties(device).total_memory, config, capacity)

    def slots_in(self, memory_bytes: int, config: "ModelConfig", capacity: int) -> int:
        """Slots for a CUDA device of so much memory."""
        from adgen.generation.slots_per_device import plan_num_slots

        dtypes = self.torch_dtype("cuda"), self.torch_cache_dtype("cuda")
        return plan_num_slots(config, capacity, memory_bytes, *dtypes, self.tensor_parallel)

    def lossy_options(self) -> dict[str, str]:
        """The options that are on and change creatives for speed: a creative's fingerprint contains them."""
        options = {name: getattr(self, name) for name in ("cache_dtype", "weights")}
        return {name: value for name, value in options.items() if value != type(self).model_fields[name].default}
