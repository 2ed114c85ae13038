"""A training run's folder: what it is, its checkpoints, its logs, and the finished model.

    OUT/run.json                      settings and digests; another setting is refused
    OUT/checkpoints/step-000200/...   `complete.json` is written last: without it a checkpoint does not exist
    OUT/losses.txt                    a line a step
    OUT/tensorboard/, OUT/samples/
    OUT/model/                        written when the last step is done; training.json last

Ray Train writes the checkpoints' files. `resume.py` decides which of them a run goes on from.
"""

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from adgen.errors import InputError, StoreError
from adgen.generation.model_directory import TRAINING_FILE
from adgen.local_cache import user_cache
from adgen.records import digest
from adgen.shop.inputs.locations import filesystem, is_s3, local_path

RUN_FILE, COMPLETE, CHECKPOINTS, MODEL, FACTS = "run.json", "complete.json", "checkpoints", "model", TRAINING_FILE


class RunFolder:
    """OUT, local or on S3."""

    def __init__(self, uri: str):
        self.uri = uri.rstrip("/")
        try:
            self.files, self.path = filesystem(self.uri)
        except ValueError as error:
            raise StoreError(f"out: {error}") from None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return isinstance(self.files, pafs.LocalFileSystem)

    # -- documents -----------------------------------------------------------------------------------------------

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A document; None when it is not there. InputError when it is damaged."""
        try:
            with self.files.open_input_file(f"{self.path}/{name}") as source:
                return json.loads(source.read())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(f"{self.uri}/{name}: not JSON: {error}") from None

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a document, whole or not at all."""
        self._write(name, json.dumps(values, indent=1, ensure_ascii=False).encode())

    def _write(self, name: str, data: bytes) -> None:
        target = f"{self.path}/{name}"
        if not self.is_local:  # an object appears when it is complete
            with self.files.open_output_stream(target) as sink:
                sink.write(data)
            return
        self.files.create_dir(target.rpartition("/")[0], recursive=True)
        with self.files.open_output_stream(f"{target}.part") as sink:
            sink.write(data)
        self.files.move(f"{target}.part", target)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[dict[str, Any]]:
        """What `complete.json` says of each complete checkpoint, oldest first."""
        selector = pafs.FileSelector(f"{self.path}/{CHECKPOINTS}", allow_not_found=True)
        names = sorted(info.base_name for info in self.files.get_file_info(selector) if info.type == pafs.FileType.Directory)
        found = [self.read_json(f"{CHECKPOINTS}/{name}/{COMPLETE}") for name in names if name.startswith("step-")]
        return [facts for facts in found if facts is not None]

    def commit(self, facts: dict[str, Any], keep: int) -> None:
        """A checkpoint's last write; older ones that are neither among the newest `keep` nor the best go."""
        self.write_json(f"{CHECKPOINTS}/{checkpoint_name(facts['step'])}/{COMPLETE}", facts)
        known = self.checkpoints()
        measured = [each for each in known if each["held_out_loss"] is not None and math.isfinite(each["held_out_loss"])]
        best = min(measured, key=lambda each: each["held_out_loss"])["step"] if measured else None
        for old in known[:-keep]:
            if old["step"] != best:
                self.files.delete_dir(f"{self.path}/{CHECKPOINTS}/{checkpoint_name(old['step'])}")

    # -- folders -------------------------------------------------------------------------------------------------

    def fetch(self, name: str, into: Path) -> Path:
        """A local copy of a folder; the folder itself when it is local."""
        if self.is_local:
            return Path(self.path) / name
        into.mkdir(parents=True, exist_ok=True)
        pafs.copy_files(
            f"{self.path}/{name}", str(into), source_filesystem=self.files, destination_filesystem=pafs.LocalFileSystem()
        )
        return into

    def put(self, local: Path, name: str, last: str = FACTS) -> None:
        """Copy a local folder's files here: to a folder all at once, to S3 with the file `last` last, so that what has it is
        whole. `local` is used up."""
        if not self.is_local:
            mark = (local / last).read_bytes()
            (local / last).unlink()
            pafs.copy_files(
                str(local), f"{self.path}/{name}", source_filesystem=pafs.LocalFileSystem(), destination_filesystem=self.files
            )
            self._write(f"{name}/{last}", mark)
            return
        target = Path(self.path) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.path))
        shutil.copytree(local, staging, dirs_exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        staging.chmod(0o755)
        for path in staging.rglob("*"):  # safetensors and mkdtemp write for one user only
            path.chmod(0o755 if path.is_dir() else 0o644)
        staging.rename(target)


def on_this_node(uri: str) -> Path:
    """A folder as a local one: itself, or this node's copy of what lies on S3. Copies are named by what they hold."""
    if not is_s3(uri):
        return Path(local_path(uri)).absolute()
    parent, _, name = uri.rstrip("/").rpartition("/")
    source = RunFolder(parent)
    found = source.files.get_file_info(pafs.FileSelector(f"{source.path}/{name}", recursive=True, allow_not_found=True))
    stamps = sorted(f"{info.path}:{info.size}:{info.mtime_ns}" for info in found)
    target = user_cache("models") / digest(uri, *stamps)[:16]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent))
        source.fetch(name, staging)
        try:
            staging.rename(target)
        except OSError:  # another process of this node was faster
            shutil.rmtree(staging)
    return target


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint after `step` steps."""
    return f"step-{step:08}"
