"""Weight files of a directory, read a tensor at a time: safetensors, or `.bin`/`.pth` without unpickling objects."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adgen.errors import ModelError

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")


def weight_files(directory: Path) -> list[Path]:
    """The weight files of a Hugging Face directory, safetensors before `.bin`; ModelError when there are none."""
    if not directory.is_dir():
        raise ModelError(f"{directory}: no such model directory")
    for index, single in zip(_INDEXES, _SINGLE, strict=True):
        if (directory / index).exists():
            return _indexed_files(directory / index)
        if (directory / single).exists():
            return [directory / single]
    raise ModelError(f"{directory}: no weights; looked for {', '.join(_SINGLE + _INDEXES)}")


def read_tensors(path: Path, inside: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of one file, each read when it is asked for. ModelError names the file.

    inside: the key of a `.bin`/`.pth` file that may hold the tensors, where the file holds other things too.
    """
    if path.suffix == ".safetensors":
        yield from _read_safetensors(path)
    else:
        yield from _read_torch(path, inside)


def tensor_names(path: Path) -> list[str]:
    """The names in one file, without reading tensors from safetensors. ModelError as `read_tensors`."""
    if path.suffix != ".safetensors":
        return [name for name, _ in read_tensors(path)]
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ModelError(f"{path}: damaged or truncated safetensors file: {error}") from None
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None


def write_tensors(directory: Path, tensors: dict[str, Tensor], max_shard_bytes: int = 5 * 2**30) -> None:
    """Write `model.safetensors`, or numbered shards and their index where it would be larger than `max_shard_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in sorted(tensors.items()):
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], directory / _SINGLE[0], metadata={"format": "pt"})
        (directory / _INDEXES[0]).unlink(missing_ok=True)  # of an earlier save, which readers would take for this one
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (directory / _INDEXES[0]).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise ModelError(f"{index}: not a weight index: {error!r}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index}: shard {name!r} is not a plain file name")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index.parent / name}: no such file, but {index.name} names it")
    return [index.parent / name for name in names]


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{path}: damaged or truncated safetensors file: {error}") from None
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None


def _read_torch(path: Path, inside: str | None) -> Iterator[tuple[str, Tensor]]:
    try:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # not torch's zip format, which alone can be mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path}: holds more than tensors, and is not unpickled: {str(error).splitlines()[0]}") from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ModelError(f"{path}: damaged or truncated: {(str(error) or 'no data').splitlines()[0]}") from None
    if inside and isinstance(tensors, dict) and isinstance(tensors.get(inside), dict):
        tensors = tensors[inside]
    if not isinstance(tensors, dict):
        raise ModelError(f"{path}: holds a {type(tensors).__name__}, not a dict of tensors")
    while tensors:  # drop each as it goes: the file may be as large as memory
        name = next(iter(tensors))
        tensor = tensors.pop(name)
        if not isinstance(tensor, Tensor):
            raise ModelError(f"{path}: {name} is a {type(tensor).__name__}, not a tensor")
        yield name, tensor.detach()
