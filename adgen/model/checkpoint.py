"""Models from files and back: our own directory, a Janus-Pro directory, and the released fine-tune.

A model is built on the meta device and filled tensor by tensor, each cast as it is read: loading never holds two copies.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from adgen.config import read_json
from adgen.errors import ModelError
from adgen.model.config import CONFIG_FILE, DecoderConfig, ImageTokenConfig, LoRAConfig, ModelConfig
from adgen.model.image_tokens import ImageTokenizer
from adgen.model.initialize import initialize_part
from adgen.model.lora import LoRALinear, add_lora, merge_lora
from adgen.model.names import from_janus_name, plain_name, published_name, unused_because
from adgen.model.uniadgen import UniAdGen
from adgen.model.weight_files import TensorFile, read_tensors, weight_files, write_tensors

Named = Iterable[tuple[str, Tensor]]


def save(model: UniAdGen, directory: str | Path) -> None:
    """Write `adgen.json` and the weights, under their published names, into `directory` (made if it is missing)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory, {published_name(name): tensor for name, tensor in model.state_dict().items()})
    model.config.save(directory)


def load(directory: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> UniAdGen:
    """A model from a directory: ours (with `adgen.json`), or Janus-Pro in Hugging Face layout, whose missing parts are
    freshly initialised. dtype None keeps the file's. ModelError names the file and the key."""
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such model directory")
    if (directory / CONFIG_FILE).exists():
        model = on_meta(ModelConfig.load(directory))
        fill(model, _directory_tensors(directory), device, dtype, source=str(directory))
        _require_complete(model, str(directory))
        return model.eval()
    model = on_meta(janus_config(directory))
    fill(model, _directory_tensors(directory), device, dtype, source=str(directory))
    _untie_text_head(model, directory)
    for part in (model.foreground, model.preference):
        _start_afresh(part, device, model.decoder.embed_tokens.weight.dtype)
    _require_complete(model, str(directory))
    return model.eval()


def load_image_tokenizer(directory: str | Path) -> tuple[ImageTokenizer, ModelConfig]:
    """The image tokenizer of a model in fp32, and the model's sizes; no other tensor is read. ModelError as `load`.

    fp32 whatever the files are in: rounded to bf16 the tokenizer picks another code for one latent in sixty.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such model directory")
    config = ModelConfig.load(directory) if (directory / CONFIG_FILE).exists() else janus_config(directory)
    with torch.device("meta"):
        holder = nn.ModuleDict({"image_tokenizer": ImageTokenizer(config.image)}).eval()
    wanted = {published_name(name) for name in holder.state_dict()}
    files = [TensorFile(path) for path in weight_files(directory)]
    found = {plain_name(from_janus_name(raw)): (file, raw) for file in files for raw in file.shapes}
    tensors = ((name, file.read(raw)) for name, (file, raw) in found.items() if name in wanted)
    fill(holder, tensors, "cpu", torch.float32, source=str(directory))
    _require_complete(holder, str(directory))
    return holder["image_tokenizer"], config


def load_finetune(model: UniAdGen, path: str | Path, lora: LoRAConfig | None = None, merge: bool = True) -> UniAdGen:
    """Put the released trainable parameters (a dict with PEFT names) over a loaded base model, in place.

    merge adds the low-rank updates to the weights; otherwise they stay apart, and model.config has them.
    ModelError: a key that this model lacks, another shape, or a part of the trainable set that the file lacks.
    """
    path = Path(path)
    lora = lora or LoRAConfig()
    add_lora(model.decoder, lora)
    model.config = model.config.model_copy(update={"lora": lora, "history_order": "published"})
    filled = fill(model, read_tensors(path), str(model.device), model.dtype, source=str(path), only_known=True)
    missing = sorted(set(trainable_names(model.state_dict())) - filled)
    if missing:
        raise ModelError(f"{path}: {len(missing)} trainable keys are missing, first {missing[0]}")
    if merge:
        merge_lora(model.decoder)
        model.config = model.config.model_copy(update={"lora": None})
    return model.eval()


def load_dinov2(model: UniAdGen, directory: str | Path) -> None:
    """Put a DINOv2 checkpoint in Hugging Face layout under the foreground path (a Janus directory has none)."""
    prefix = "language_model.model.adapter.model."
    tensors = ((prefix + name.removeprefix("dinov2."), tensor) for name, tensor in _raw_tensors(Path(directory)))
    filled = fill(model, tensors, str(model.device), model.dtype, source=str(directory))
    wanted = {published_name(name) for name in model.state_dict() if name.startswith("foreground.adapter.")}
    if wanted - filled:
        raise ModelError(f"{directory}: {len(wanted - filled)} DINOv2 keys are missing, first {min(wanted - filled)}")


def on_meta(config: ModelConfig) -> UniAdGen:
    """A model without memory: every parameter on the meta device."""
    with torch.device("meta"):
        return UniAdGen(config).eval()


@torch.no_grad()
def fill(
    model: nn.Module,
    tensors: Named,
    device: str,
    dtype: torch.dtype | None,
    source: str,
    only_known: bool = False,
) -> set[str]:
    """Put tensors with published (or PEFT) names into the model; returns the published names that were filled.

    Names that the model has no use for are skipped, unless only_known. ModelError: an unexpected key, another shape.
    """
    slots = {published_name(name): name for name in model.state_dict()}
    filled = set()
    for raw, tensor in tensors:
        name = plain_name(raw)
        if name not in slots:
            if not only_known and unused_because(name):
                continue
            raise ModelError(f"{source}: unexpected key {raw}")
        parent, attribute = _locate(model, slots[name])
        current = getattr(parent, attribute)
        if current.shape != tensor.shape:
            raise ModelError(f"{source}: {raw} has shape {list(tensor.shape)}, the model needs {list(current.shape)}")
        value = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
        setattr(parent, attribute, nn.Parameter(value, requires_grad=current.requires_grad))
        filled.add(name)
    return filled


def trainable_names(owns: Iterable[str]) -> Iterator[str]:
    """Of a model's own names, those that the released recipe trains (docs/design.md 6.13), as the published model calls them:
    low-rank updates, the token table, and every new module. Heads, the picture-token table and the tokenizer stay frozen."""
    for own in owns:
        new = own.startswith(("foreground.", "preference.")) or own == "decoder.embed_tokens.weight"
        if new or own.endswith((".lora_A", ".lora_B")):
            yield published_name(own)


def janus_config(directory: Path) -> ModelConfig:
    """The sizes of a Janus-Pro directory, from its config.json in DeepSeek's or transformers' form."""
    path = directory / "config.json"
    try:
        raw = read_json(path)
    except FileNotFoundError:
        raise ModelError(f"{directory}: neither {CONFIG_FILE} nor config.json: not a model directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from None
    try:
        if raw.get("model_type") == "janus":
            return _config_from_transformers(raw)
        if raw.get("model_type") == "multi_modality":
            return _config_from_deepseek(raw)
    except KeyError as error:
        raise ModelError(f"{path}: field {error} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not the sizes of a Janus-Pro model: {error}") from None
    raise ModelError(f"{path}: model_type is {raw.get('model_type')!r}; expected 'janus' or 'multi_modality'")


def _config_from_transformers(raw: dict) -> ModelConfig:
    from transformers import JanusConfig

    config = JanusConfig.from_dict(raw)  # knows the defaults that a saved file leaves out
    vq = config.vq_config
    factor = 2 ** (len(vq.channel_multiplier) - 1)
    image = ImageTokenConfig(
        codebook_size=vq.num_embeddings,
        code_size=vq.embed_dim,
        base_channels=vq.base_channels,
        channel_multiplier=tuple(vq.channel_multiplier),
        num_res_blocks=vq.num_res_blocks,
        latent_channels=vq.latent_channels,
        head_size=vq.projection_dim,
        image_size=vq.num_patches * factor,
        history_size=8 * factor,
    )
    return _assemble(_llama_config(config.text_config.to_dict()), image)


def _config_from_deepseek(raw: dict) -> ModelConfig:
    head = raw["gen_head_config"]["params"]
    vq = raw["gen_vision_config"]["params"]
    image = ImageTokenConfig(
        codebook_size=vq["image_token_size"],
        code_size=vq["n_embed"],
        head_size=head["image_token_embed"],
        image_size=384,
        history_size=128,
    )
    return _assemble(_llama_config(raw["language_config"]), image)


def _llama_config(raw: dict) -> DecoderConfig:
    heads = raw.get("num_attention_heads", 32)
    rope = raw.get("rope_parameters") or {}
    if raw.get("rope_scaling") or rope.get("rope_type", "default") != "default":
        raise ValueError(f"scaled RoPE is not supported (found {raw.get('rope_scaling') or rope})")
    return DecoderConfig(
        hidden_size=raw.get("hidden_size", 4096),
        intermediate_size=raw.get("intermediate_size", 11008),
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        vocab_size=raw["vocab_size"],
        max_positions=raw["max_position_embeddings"],
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=raw.get("rope_theta") or rope.get("rope_theta", 10000.0),
    )


def _assemble(decoder: DecoderConfig, image: ImageTokenConfig) -> ModelConfig:
    foreground = {"condition_size": 16 * (image.image_size // image.factor)}
    return ModelConfig(name="janus-pro", decoder=decoder, image=image, foreground=foreground)


def _directory_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in _raw_tensors(directory):
        yield from_janus_name(name), tensor


def _raw_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    for path in weight_files(directory):
        yield from read_tensors(path)


def _locate(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def is_tied(directory: Path) -> bool:
    """Whether a Janus-Pro directory holds one tensor for text head and token table."""
    raw = read_json(directory / "config.json")
    return raw.get("tie_word_embeddings", raw.get("model_type") == "janus")  # transformers leaves its default out


def _untie_text_head(model: UniAdGen, directory: Path) -> None:
    """A directory whose config ties the text head to the token table holds one tensor for both; here they are two."""
    if is_tied(directory) and model.decoder.lm_head.weight.is_meta and not model.decoder.embed_tokens.weight.is_meta:
        model.decoder.lm_head.weight = nn.Parameter(model.decoder.embed_tokens.weight.detach().clone(), requires_grad=False)


def _start_afresh(part: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Materialise a part that no file of the directory filled, and initialise it."""
    if all(p.is_meta for p in part.parameters()):
        part.to_empty(device=device).to(dtype)
        initialize_part(part)


def _require_complete(model: nn.Module, source: str) -> None:
    missing = sorted(published_name(name) for name, p in model.state_dict().items() if p.is_meta)
    if missing:
        raise ModelError(f"{source}: {len(missing)} keys are missing, first {missing[0]}")
    for module in model.modules():
        if isinstance(module, LoRALinear):
            module.requires_grad_(False)
