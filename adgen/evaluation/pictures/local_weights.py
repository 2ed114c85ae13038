"""Networks for metrics from a local directory in Hugging Face layout. Nothing is ever downloaded, nothing unpickled."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from torch import nn

from adgen.config import read_json
from adgen.errors import ModelError

M = TypeVar("M", bound=nn.Module)
CONFIG, WEIGHTS = "config.json", ("model.safetensors", "model.safetensors.index.json")


def local_model(directory: str | Path, kind: type[M], *model_types: str) -> M:
    """The network of transformers' class `kind`, in evaluation mode, without gradients. `model_types` are the words that
    config.json may say of itself. ModelError names the file that is missing, the field that is wrong, or missing keys."""
    found = read_model_type(directory)
    if found not in model_types:
        raise ModelError(f"{Path(directory) / CONFIG}: model_type is {found!r}, expected {' or '.join(model_types)}")
    require_files(directory, WEIGHTS)
    try:
        with _quiet():
            model, report = kind.from_pretrained(directory, local_files_only=True, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{directory}: not a {found} that transformers can load: {_first_line(error)}") from None
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{directory}: key {missing[0]} is missing, {len(missing)} in all")
    return model.float().eval().requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' progress and its report of keys go to stderr, in every worker; what matters of them is raised."""
    from transformers.utils import logging

    level, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()


def read_model_type(directory: str | Path) -> str:
    """What the directory's config.json says the network is. ModelError names the file."""
    path = Path(directory) / CONFIG
    require_files(directory, (CONFIG,))
    try:
        values: Any = read_json(path)
        return values["model_type"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: expected a JSON object with model_type: {_first_line(error)}") from None


def require_files(directory: str | Path, names: tuple[str, ...]) -> None:
    """ModelError unless one of `names` is in the directory; it says where from, as nothing is downloaded."""
    directory = Path(directory)
    if not any((directory / name).is_file() for name in names):
        what = "no such directory" if not directory.is_dir() else f"{' or '.join(names)} is missing"
        raise ModelError(f"{directory}: {what}; weights are never downloaded here: put the files there and name the directory")


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).strip().splitlines()[0]
