"""What is trainable and what is frozen."""

import torch

from adgen.errors import SettingsError
from adgen.model.checkpoint import trainable_names
from adgen.model.lora import LoRALinear, add_lora
from adgen.model.names import current_name, published_name
from adgen.model.uniadgen import UniAdGen
from adgen.training.settings import TrainableSettings

_NEVER_IN_LANGUAGE = ("image_tokenizer.",)


def choose_trainable(
    model: UniAdGen, stage: str, settings: TrainableSettings, seed: int = 0, reads_clicks: bool = False
) -> list[str]:
    """Set requires_grad on every parameter for a language stage, adding low-rank updates where the preset has them; the
    names of the trainable ones. reads_clicks: the stage `general` trains the style encoder, too (losses.clicks). SettingsError
    when a name in `freeze` fits nothing, or nothing is left."""
    if settings.preset == "released":
        add_lora(model.decoder, settings.lora)
        generator = torch.Generator().manual_seed(seed)
        for module in model.decoder.modules():
            if isinstance(module, LoRALinear):
                module.reset_lora(generator)
        model.config = model.config.model_copy(update={"lora": settings.lora})
    released = set(trainable_names(model.state_dict()))
    freeze = tuple(map(current_name, settings.freeze))
    frozen = _NEVER_IN_LANGUAGE + freeze
    names = dict(model.named_parameters())
    for prefix in freeze:
        if not any(name.startswith(prefix) for name in names):
            raise SettingsError(f"trainable.freeze: no parameter's name begins with {prefix!r}")
    for name, parameter in names.items():
        chosen = settings.preset == "full" or published_name(name) in released
        unused = stage == "general" and _unused_in_general(name, reads_clicks)
        parameter.requires_grad_(chosen and not unused and not name.startswith(frozen))
    # DINOv2's mask token replaces hidden patches, and nothing here hides any: it has no gradient.
    names["foreground.adapter.embeddings.mask_token"].requires_grad_(False)
    trainable = [name for name, parameter in names.items() if parameter.requires_grad]
    if not trainable:
        raise SettingsError(f"trainable: nothing is left to train in stage {stage}")
    return trainable


def _unused_in_general(name: str, reads_clicks: bool) -> bool:
    """What would only decay there."""
    return name.startswith("preference.") and not (reads_clicks and name.startswith("preference.style_encoder."))
