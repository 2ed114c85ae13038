"""From a Janus-Pro directory and a released fine-tune to the tensors of one model, a tensor at a time.

`plan` decides where each tensor comes from and checks names and shapes; nothing is read until `Origins.read` is asked for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from adgen.errors import ModelError
from adgen.model.checkpoint import is_tied, janus_config, on_meta, trainable_names
from adgen.model.config import CONFIG_FILE, LoRAConfig, ModelConfig
from adgen.model.initialize import initialize_part
from adgen.model.modules import module_of
from adgen.model.names import from_janus_name, plain_name, published_name, unused_because
from adgen.model.uniadgen import UniAdGen
from adgen.model.weight_files import TensorFile, weight_files

From = Literal["base", "fine-tune", "DINOv2", "new"]
_LM_HEAD, _TOKENS = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
_ADAPTER = "language_model.model.adapter.model."
_LORA_A, _LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: a file and the name it has there; new ones come from no file."""

    kind: From
    file: TensorFile | None = None
    name: str = ""


@dataclass(frozen=True)
class Origins:
    """Where every tensor of a model comes from, by published name."""

    config: ModelConfig
    tensors: dict[str, Origin]
    updates: dict[str, tuple[Origin, Origin]]
    """Low-rank updates (A, B) that are added to a weight."""
    dtype: torch.dtype

    def read(self, name: str) -> Tensor:
        """One tensor as the new model holds it."""
        origin = self.tensors[name]
        tensor = self._new[name] if origin.file is None else origin.file.read(origin.name)
        if name in self.updates:  # in fp32, and rounded once
            a, b = (update.file.read(update.name).float() for update in self.updates[name])
            lora = LoRAConfig()
            tensor = tensor.float() + lora.alpha / lora.rank * (b @ a)
        if name == _LM_HEAD:
            tensor = tensor.clone()  # a tied one is the token table, which a file must not hold twice as one
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor."""
        shapes = self._model.state_dict()
        return {
            published_name(own): tensor.numel() * (self.dtype if tensor.is_floating_point() else tensor.dtype).itemsize
            for own, tensor in shapes.items()
        }

    @cached_property
    def modules(self) -> dict[str, set[From]]:
        """Each module -> where its tensors come from."""
        found: dict[str, set[From]] = {}
        for own in self._model.state_dict():
            name = published_name(own)
            kinds = {self.tensors[name].kind} | {update.kind for update in self.updates.get(name, ())}
            found[module_of(own)] = found.get(module_of(own), set()) | kinds
        return found

    def modules_from(self, file: TensorFile) -> list[str]:
        """The modules that take something from a file."""
        owns = {published_name(own): module_of(own) for own in self._model.state_dict()}
        origins = [(name, origin) for name, origin in self.tensors.items()]
        origins += [(name, origin) for name, pair in self.updates.items() for origin in pair]
        return sorted({owns[name] for name, origin in origins if origin.file is file})

    @property
    def files(self) -> list[TensorFile]:
        """Every file that something is taken from, by name."""
        origins = [*self.tensors.values(), *(each for pair in self.updates.values() for each in pair)]
        found = {origin.file.path: origin.file for origin in origins if origin.file}
        return [found[path] for path in sorted(found)]

    @cached_property
    def _model(self) -> UniAdGen:
        return on_meta(self.config)

    @cached_property
    def _new(self) -> dict[str, Tensor]:
        """Parts of which something is new, initialised as `checkpoint.load` does."""
        model, made = self._model, {}
        for part in ("foreground", "preference"):
            names = {name: published_name(name) for name in model.state_dict() if name.startswith(f"{part}.")}
            if not any(self.tensors[name].file is None for name in names.values()):
                continue
            module = on_meta(self.config).get_submodule(part).to_empty(device="cpu").to(self.dtype)
            initialize_part(module)
            made |= {published_name(f"{part}.{name}"): tensor for name, tensor in module.state_dict().items()}
        return made


def plan(base: Path, finetune: Path | None, dinov2: Path | None, keep_lora: bool, dtype: torch.dtype) -> Origins:
    """Where each tensor of the new model comes from. ModelError: what of the files does not fit the model, or is missing."""
    if (base / CONFIG_FILE).exists():
        raise ModelError(
            f"{base}: is an adgen model directory ({CONFIG_FILE}), which needs no conversion; give a Janus-Pro directory"
        )
    if finetune and dinov2:
        raise ModelError(f"--dinov2 {dinov2}: the fine-tune {finetune} has its own DINOv2: leave it out")
    config = janus_config(base)
    slots = _slots(config)
    found = _base_tensors(base, slots)
    updates: dict[str, tuple[Origin, Origin]] = {}
    if dinov2:
        found |= _dinov2_tensors(dinov2, slots)
    if finetune:
        config = config.model_copy(update={"history_order": "published", "lora": LoRAConfig()})
        tuned = _finetune_tensors(finetune, _slots(config))
        if not keep_lora:
            config = config.model_copy(update={"lora": None})
            updates = {
                a.removesuffix(_LORA_A) + ".weight": (tuned.pop(a), tuned.pop(a.removesuffix(_LORA_A) + _LORA_B))
                for a in [name for name in tuned if name.endswith(_LORA_A)]
            }
        found |= tuned
        slots = _slots(config)
    needed = [name for name, (own, _) in slots.items() if not own.startswith(("foreground.", "preference."))]
    missing = sorted(set(needed) - found.keys())
    if missing:
        raise ModelError(f"{base}: {len(missing)} keys are missing, first {missing[0]}")
    return Origins(config, {name: found.get(name, Origin("new")) for name in slots}, updates, dtype)


def _slots(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Published name -> own name and shape."""
    return {published_name(own): (own, tuple(tensor.shape)) for own, tensor in on_meta(config).state_dict().items()}


def _base_tensors(base: Path, slots: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Origin]:
    found: dict[str, Origin] = {}
    for file in map(TensorFile, weight_files(base)):
        names = {raw: plain_name(from_janus_name(raw)) for raw in file.shapes}
        used = {raw: name for raw, name in names.items() if name in slots or not unused_because(name)}
        found |= _placed("base", file, used, slots)
    if _LM_HEAD not in found and _TOKENS in found and is_tied(base):
        found[_LM_HEAD] = found[_TOKENS]
    return found


def _dinov2_tensors(directory: Path, slots: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Origin]:
    found: dict[str, Origin] = {}
    for file in map(TensorFile, weight_files(directory)):
        names = {raw: plain_name(_ADAPTER + raw.removeprefix("dinov2.")) for raw in file.shapes}
        found |= _placed("DINOv2", file, names, slots)
    _require(directory, (name for name, (own, _) in slots.items() if own.startswith("foreground.adapter.")), found, "DINOv2")
    return found


def _finetune_tensors(path: Path, slots: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Origin]:
    file = TensorFile(path)
    found = _placed("fine-tune", file, {raw: plain_name(raw) for raw in file.shapes}, slots)
    _require(path, trainable_names(own for own, _ in slots.values()), found, "trainable")
    return found


def _placed(
    kind: From, file: TensorFile, names: dict[str, str], slots: dict[str, tuple[str, tuple[int, ...]]]
) -> dict[str, Origin]:
    """The tensors of a file in the model's places. ModelError: one that the model lacks, or that has another shape there."""
    for raw, name in names.items():
        if name not in slots:
            raise ModelError(f"{file.path}: unexpected key {raw}")
        if file.shapes[raw] != slots[name][1]:
            raise ModelError(f"{file.path}: {raw} has shape {list(file.shapes[raw])}, the model needs {list(slots[name][1])}")
    return {name: Origin(kind, file, raw) for raw, name in names.items()}


def _require(source: Path, names: Iterable[str], found: dict[str, Origin], what: str) -> None:
    if missing := sorted(set(names) - found.keys()):
        raise ModelError(f"{source}: {len(missing)} {what} keys are missing, first {missing[0]}")
