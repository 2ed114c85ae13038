"""Weight files of a directory, read a tensor at a time: safetensors, or `.bin`/`.pth` without unpickling objects.

Names and headers are read without torch.
"""

import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from adgen.config import read_json
from adgen.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

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


def read_tensors(path: Path, inside: str | None = None) -> "Iterator[tuple[str, Tensor]]":
    """(name, tensor) of one file, each read when it is asked for. ModelError names the file.

    inside: the key of a `.bin`/`.pth` file that may hold the tensors, where the file holds other things too.
    """
    if path.suffix == ".safetensors":
        yield from _read_safetensors(path)
    else:
        yield from _read_torch(path, inside)


class TensorFile:
    """The tensors of one file, by name: shapes are known at once, each is read when it is asked for. ModelError names the file."""

    def __init__(self, path: Path):
        self.path = path
        if path.suffix != ".safetensors":
            self._tensors = _checked(_load_torch(path, None), path)  # mapped, where the file can be: nothing is read yet
            self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
            self.dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in self._tensors.values()}
            return
        with _readable_safetensors(path):
            self._file = safe_open(path, framework="pt")
            parts = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            self.shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
            self.dtypes = {part.get_dtype().lower() for part in parts.values()}

    def read(self, name: str) -> "Tensor":
        """One tensor."""
        if self.path.suffix != ".safetensors":
            return self._tensors[name].detach()
        with _readable_safetensors(self.path):
            return self._file.get_tensor(name)


def tensor_names(path: Path) -> list[str]:
    """The names in one file, without reading tensors from safetensors. ModelError as `read_tensors`."""
    if path.suffix != ".safetensors":
        return [name for name, _ in read_tensors(path)]
    with _readable_safetensors(path), safe_open(path, framework="numpy") as file:
        return list(file.keys())


def write_tensors(directory: Path, tensors: "dict[str, Tensor]", max_shard_bytes: int = 5 * 2**30) -> None:
    """Write `model.safetensors`, or numbered shards and their index where it would be larger than `max_shard_bytes`."""
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    shards = plan_shards(sizes, max_shard_bytes)
    for file, names in shards.items():
        save_shard(directory / file, {name: tensors[name] for name in names})
    write_index(directory, shards, sum(sizes.values()))


def plan_shards(sizes: dict[str, int], max_shard_bytes: int) -> dict[str, list[str]]:
    """File names -> the tensors that each holds, of `sizes` bytes, in order of their names."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(sizes):
        if shards[-1] and size + sizes[name] > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += sizes[name]
    if len(shards) == 1:
        return {_SINGLE[0]: shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": names for number, names in enumerate(shards, start=1)}


def save_shard(path: Path, tensors: "dict[str, Tensor]") -> None:
    """Write one safetensors file."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def write_index(directory: Path, shards: dict[str, list[str]], total_bytes: int) -> None:
    """Write the index of several shards; a single file has none."""
    if len(shards) == 1:
        (directory / _INDEXES[0]).unlink(missing_ok=True)  # of an earlier save, which readers would take for this one
        return
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / _INDEXES[0]).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise ModelError(f"{index}: not a weight index: {error!r}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index}: shard {name!r} is not a plain file name")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index.parent / name}: no such file, but {index.name} names it")
    return [index.parent / name for name in names]


def _read_safetensors(path: Path) -> "Iterator[tuple[str, Tensor]]":
    with _readable_safetensors(path), safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            yield name, file.get_tensor(name)


@contextmanager
def _readable_safetensors(path: Path) -> Iterator[None]:
    """ModelError where the file is none, or cut short."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"{path}: damaged or truncated safetensors file: {error}") from None
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None


def _read_torch(path: Path, inside: str | None) -> "Iterator[tuple[str, Tensor]]":
    tensors = _load_torch(path, inside)
    while tensors:  # drop each as it goes: the file may be as large as memory
        name = next(iter(tensors))
        [(_, tensor)] = _checked({name: tensors.pop(name)}, path).items()
        yield name, tensor.detach()


def _checked(tensors: dict, path: Path) -> "dict[str, Tensor]":
    """The same; ModelError where one is no tensor."""
    from torch import Tensor

    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ModelError(f"{path}: {name} is a {type(tensor).__name__}, not a tensor")
    return tensors


def _load_torch(path: Path, inside: str | None) -> dict:
    """The dict that a `.bin`/`.pth` file holds, mapped where the format allows it."""
    import torch

    try:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # not torch's zip format, which alone can be mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch also says how to unpickle it all the same: nobody should
        raise ModelError(f"{path}: holds more than tensors, and is not unpickled{': ' + named[1] if named else ''}") from None
    except MemoryError:
        raise
    except Exception as error:  # torch's unpickler raises whatever comes over it in a file that is none: KeyError, IndexError, ...
        said = (str(error) or "no data").splitlines()[0]
        raise ModelError(f"{path}: damaged or truncated, or no file of torch: {type(error).__name__}: {said}") from None
    if inside and isinstance(tensors, dict) and isinstance(tensors.get(inside), dict):
        tensors = tensors[inside]
    if not isinstance(tensors, dict):
        raise ModelError(f"{path}: holds a {type(tensors).__name__}, not a dict of tensors")
    return tensors
