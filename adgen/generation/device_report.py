"""`adgen check-device`: the check that an engine on a GPU makes at its start, made by hand and told whole."""

from dataclasses import dataclass
from pathlib import Path

from adgen.generation.benchmark.machine import device_name
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.sampling_settings import SamplingChoice
from adgen.model.device import pick_device


@dataclass
class DeviceReport:
    """What a device's check found."""

    device: str
    dtype: str
    num_slots: int
    switched_off: list[str]
    """Kernels that an engine on this device does not use."""
    checks: dict[str, str]


def check_model(directory: Path, device: str, settings: EngineSettings) -> DeviceReport:
    """Of a device, on the shapes of a model and with its weights."""
    model, chosen = ModelDirectory(directory), pick_device(device)
    weights = model.load(chosen, settings.torch_dtype(chosen))
    engine = Engine(weights, model.prompter, settings, SamplingChoice().of(model.sampling), device=chosen, check=True)
    return DeviceReport(
        device=device_name(engine.device),
        dtype=str(engine.dtype).removeprefix("torch."),
        num_slots=engine.num_slots,
        switched_off=sorted(engine.switched_off),
        checks={each.check: str(each) for each in engine.findings},
    )
