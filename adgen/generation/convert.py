"""`adgen convert`: a Janus-Pro directory, and the released fine-tune over it, as a model directory of ours.

Everything is checked before anything is written: architecture, names, shapes, tokenizer, room on the disk. Weights go shard by
shard into a folder beside the destination, which gets its name last; the same command goes on after a crash.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Literal

import torch

from adgen.errors import ModelError
from adgen.generation.prompt import Prompter
from adgen.generation.sampling_settings import SAMPLING_FILE, SamplingSettings
from adgen.generation.template import load_template
from adgen.model.conversion import Origins, plan
from adgen.model.modules import ModelFacts, SourceFile
from adgen.model.weight_files import TensorFile, plan_shards, save_shard, write_index
from adgen.progress import Progress
from adgen.records import digest

MAX_SHARD_BYTES = 2 * 2**30
"""Of a file that is written: what one holds in memory while it is put together."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_WORDING = "prompt.toml: the base's own, or ours; released weights want the words that they were trained with (--prompt)"
_PLAN_FILE = "conversion.json"
_SPARE_BYTES = 64 * 2**20  # tokenizer, documents, and what a file system takes for itself
_PUBLISHED = ("title_temperature", "title_top_k", "max_title_tokens", "picture_temperature", "guidance", "control_strength")


@dataclasses.dataclass(frozen=True)
class ConversionSettings:
    """What is converted, and how."""

    base: Path
    """A Janus-Pro directory, in DeepSeek's or transformers' layout."""
    dest: Path
    finetune: Path | None = None
    """The released trainable parameters (.pth, .bin or .safetensors)."""
    dinov2: Path | None = None
    """A DINOv2 directory in Hugging Face layout, where there is no fine-tune."""
    prompt: Path | None = None
    """A template (prompt.toml); default the base's own, or ours."""
    keep_lora: bool = False
    """Keep low-rank updates apart from the weights, in the place of adding them."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"


@dataclasses.dataclass
class Converted:
    """What a conversion did, or would do."""

    dest: str
    parameters: int
    dtype: str
    gigabytes: float
    history: str
    """Items of a prompt, tokens an item, and who says their order."""
    written: bool
    modules: list[str]
    """Each module, and where its weights come from."""
    untrained: list[str]
    """Modules that no file holds: freshly initialised, and refused by a refresh until they are trained."""
    notes: list[str]


def convert(settings: ConversionSettings, progress: Progress, dry_run: bool = False) -> Converted:
    """Write the model directory; ModelError says what stands against it before anything is written. Where an earlier try was
    stopped, shards that are there are kept. dry_run: checks and report alone."""
    origins = plan(settings.base, settings.finetune, settings.dinov2, settings.keep_lora, DTYPES[settings.dtype])
    template = load_template(settings.prompt) if settings.prompt else None
    prompter = Prompter.load(settings.base, origins.config, template)
    staging = settings.dest.absolute().parent / f".{settings.dest.name}.converting"
    shards = plan_shards(origins.sizes, MAX_SHARD_BYTES)
    _require_free(settings.dest, staging, sum(origins.sizes.values()))
    if not dry_run:
        sources = _begin(settings, origins, staging, progress)
        _write_weights(origins, shards, staging, progress)
        _write_documents(settings, origins, prompter, sources, staging)
        write_index(staging, shards, sum(origins.sizes.values()))
        (staging / _PLAN_FILE).unlink()
        if settings.dest.exists():
            settings.dest.rmdir()  # an empty folder
        staging.rename(settings.dest)
    return _report(settings, origins, not dry_run)


def _require_free(dest: Path, staging: Path, needed: int) -> None:
    """ModelError where the destination is taken, or its disk too full."""
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ModelError(f"{dest}: is there already and not empty: name another destination, or remove it")
    parent = next(folder for folder in dest.absolute().parents if folder.exists())
    there = sum(path.stat().st_size for path in staging.glob("*.safetensors"))
    free = shutil.disk_usage(parent).free
    if needed - there + _SPARE_BYTES > free:
        raise ModelError(f"{dest}: needs {(needed - there) / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB left")


def _begin(settings: ConversionSettings, origins: Origins, staging: Path, progress: Progress) -> list[SourceFile]:
    """The folder that is written to, new or of the same conversion before, and the sources with their hashes."""
    asked = {**dataclasses.asdict(settings), "dest": None, "files": [_stamp(file.path) for file in origins.files]}
    identity = digest(json.dumps(asked, sort_keys=True, default=str))
    document = staging / _PLAN_FILE
    before = json.loads(document.read_text(encoding="utf-8")) if document.exists() else {}
    if before.get("identity") != identity:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        before = {"identity": identity, "sources": {}}
    progress.phase("hash the sources", sum(file.path.stat().st_size for file in origins.files))
    for file in origins.files:
        if str(file.path) not in before["sources"]:
            before["sources"][str(file.path)] = _sha256(file.path)
            _write_whole(document, json.dumps(before))
        progress.advance(file.path.stat().st_size)
    return [_source(file, before["sources"][str(file.path)], origins) for file in origins.files]


def _source(file: TensorFile, sha256: str, origins: Origins) -> SourceFile:
    modules = tuple(origins.modules_from(file))
    return SourceFile(file=file.path.name, sha256=sha256, bytes=file.path.stat().st_size, modules=modules)


def _write_weights(origins: Origins, shards: dict[str, list[str]], staging: Path, progress: Progress) -> None:
    """Every shard that is not there; a file that has its name is whole."""
    progress.phase("write", sum(origins.sizes.values()))
    for file, names in shards.items():
        if not (staging / file).exists():
            part = staging / f"{file}.part"
            save_shard(part, {name: origins.read(name) for name in names})
            part.rename(staging / file)
        progress.advance(sum(origins.sizes[name] for name in names), file)


def _write_documents(
    settings: ConversionSettings, origins: Origins, prompter: Prompter, sources: list[SourceFile], staging: Path
) -> None:
    origins.config.save(staging)
    prompter.save(staging)
    # The release draws its masks' noise in inference, too.
    chosen = SamplingSettings(preference_noise=settings.finetune is not None)
    fields = {*_PUBLISHED, *(("preference_noise",) if settings.finetune else ())}
    (staging / SAMPLING_FILE).write_text(json.dumps(chosen.model_dump(include=fields), indent=1) + "\n", encoding="utf-8")
    states = {module: "untrained" if "new" in kinds else "trained" for module, kinds in origins.modules.items()}
    ModelFacts(modules=states, sources=tuple(sources)).save(staging)
    for path in staging.iterdir():  # safetensors writes for one user only
        path.chmod(0o644)


def _report(settings: ConversionSettings, origins: Origins, written: bool) -> Converted:
    config = origins.config
    modules = [f"{module}: {', '.join(sorted(kinds))}" for module, kinds in sorted(origins.modules.items())]
    untrained = sorted(module for module, kinds in origins.modules.items() if "new" in kinds)
    notes = [] if settings.prompt else [_WORDING]
    if untrained:
        notes.append("for a refresh give a released fine-tune (--finetune), or train it (docs/training.md)")
        if not settings.dinov2:
            notes.append("training wants a DINOv2 to see products with: --dinov2 here, or of jobs/pretrain.py")
    items = f"{config.history_items} of {config.image.tokens_per_history_picture} + {config.preference.tokens_per_title} tokens"
    total = sum(origins.sizes.values())
    return Converted(
        dest=str(settings.dest),
        parameters=total // origins.dtype.itemsize,
        dtype=settings.dtype,
        gigabytes=round(total / 1e9, 3),
        history=f"{items}, order {config.history_order}",
        written=written,
        modules=modules,
        untrained=untrained,
        notes=notes,
    )


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{path.absolute()}:{found.st_size}:{found.st_mtime_ns}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_whole(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
