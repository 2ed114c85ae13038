"""The encoders that the commands are given, or those that ship with the package."""

from pathlib import Path

import torch

from adgen.errors import SettingsError
from adgen.evaluation.pictures.backgrounds import PatchEncoder, load_dinov2, own_adapter
from adgen.model.checkpoint import load
from adgen.model.pbs import PBSEncoder, load_pbs
from adgen.shipped import shipped_encoder, shipped_model


def pbs_encoder(path: Path | None, device: torch.device) -> PBSEncoder:
    """The encoder at `path`, or the shipped one. SettingsError when there is neither; ModelError as `load_pbs`."""
    path = path or shipped_encoder()
    if path is None:
        raise SettingsError(
            "encoder: none is given and this package ships none; name a directory that jobs/pretrain.py --stage pbs wrote, "
            "or the published checkpoint"
        )
    return load_pbs(path).to(device)


def patch_encoder(dinov2: Path | None, model: Path | None, device: torch.device) -> PatchEncoder:
    """The DINOv2 in a directory, else the adapter of a model, else that of the shipped model. SettingsError for none."""
    if dinov2 is not None:
        return load_dinov2(dinov2, device)
    model = model or shipped_model()
    if model is None:
        raise SettingsError(
            "dinov2, model: neither is given and this package ships no model; name a DINOv2 in Hugging Face layout, or a "
            "model directory whose own adapter stands in for it"
        )
    return own_adapter(load(model, dtype=torch.float32).to(device))
