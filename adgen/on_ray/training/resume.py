"""Where a killed training goes on: whether its folder holds the same run, and which checkpoint the workers load.

The run's folder alone decides. Ray Train writes the checkpoints' files, but its own list of checkpoints lags a report
behind, and would not survive a disk that was full when it was written.
"""

from typing import Any

import pyarrow.fs as pafs
import torch.distributed as dist

from adgen.config import validate_settings
from adgen.errors import RunError
from adgen.generation.model_directory import directory_digest
from adgen.on_ray.training.run_folder import CHECKPOINTS, RUN_FILE, RunFolder, checkpoint_name, on_this_node
from adgen.on_ray.training.settings import TABLES, PretrainSettings
from adgen.records import digest
from adgen.shop.inputs.tables import open_inputs
from adgen.training.settings import UNTRAINED, TrainingSettings

# -- the driver: is it the same run? -----------------------------------------------------------------------------------


def claim(folder: RunFolder, identity: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Start the run, or go on with it: whether it was there. RunError names the first setting that differs."""
    found = folder.read_json(RUN_FILE)
    if found is None:
        folder.write_json(RUN_FILE, facts | {"identity": identity})
        return False
    differing = _first_difference(_in_present_settings(found["identity"], f"{folder.uri}/{RUN_FILE}"), identity)
    if differing:
        name, before, now = differing
        raise RunError(
            f"{folder.uri} holds a run with {name} {before!r}, and now it is {now!r}: go on with the same settings, or give "
            "another --out"
        )
    return True


def run_identity(settings: PretrainSettings, start: str | None) -> dict[str, Any]:
    """All that decides what is learned: settings, and what lies at the places that they name."""
    inputs = open_inputs(settings.inputs, TABLES)
    stamps = digest("inputs", *(part for pair in sorted(inputs.stamps.items()) for part in pair))
    made_from = directory_digest(on_this_node(start)) if start else None
    identity = settings.identity() | {"start": made_from, "inputs": stamps}
    if settings.dinov2:
        own = settings.dinov2
        identity["dinov2"] = own if own == UNTRAINED else directory_digest(on_this_node(own))
    return identity


def _in_present_settings(identity: dict[str, Any], source: str) -> dict[str, Any]:
    """The identity of an earlier version's run as this version would have written it: a field that came since has its
    default, which is what was done before; what was renamed or removed since is read as a settings file's is. SettingsError:
    a later version's field, or a removed one that was in use."""
    own = {name: value for name, value in identity.items() if name in TrainingSettings.model_fields}
    settings = validate_settings(TrainingSettings, own, source).model_dump(mode="json", exclude={"evaluation"})
    return settings | {name: value for name, value in identity.items() if name not in own}


def _first_difference(before: dict, now: dict, prefix: str = "") -> tuple[str, Any, Any] | None:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := _first_difference(old, new, f"{prefix}{name}."):
                return inner
        elif old != new:
            return f"{prefix}{name}", old, new
    return None


def forget_rays_list(folder: RunFolder) -> None:
    """Ray Train goes by what its workers find here, not by its own list of an earlier try."""
    path = f"{folder.path}/{CHECKPOINTS}/checkpoint_manager_snapshot.json"
    if folder.files.get_file_info(path).type == pafs.FileType.File:
        folder.files.delete_file(path)


# -- the workers: from which checkpoint? -------------------------------------------------------------------------------


def newest_checkpoint(folder: RunFolder, rank: int, workers: int) -> dict[str, Any] | None:
    """What `complete.json` of the newest complete checkpoint says, as the first worker sees it; every worker calls this. What
    an earlier try wrote after it is removed: files of another number of workers would stay among the new ones."""
    found = [None]
    if rank == 0:
        found = folder.checkpoints()[-1:] or [None]
        _remove_unfinished(folder, found[0]["step"] if found[0] else 0)
    if workers > 1:
        dist.broadcast_object_list(found)
    return found[0]


def _remove_unfinished(folder: RunFolder, newest: int) -> None:
    selector = pafs.FileSelector(f"{folder.path}/{CHECKPOINTS}", allow_not_found=True)
    for info in folder.files.get_file_info(selector):
        if info.base_name.startswith("step-") and info.base_name > checkpoint_name(newest):
            folder.files.delete_dir(info.path)


def require_same_engine(found: dict[str, Any] | None, settings: PretrainSettings) -> None:
    """RunError when the checkpoint was written by the other engine."""
    if found and found["engine"] != settings.engine:
        raise RunError(
            f"{settings.out}: its checkpoint is of engine {found['engine']}, and now it is {settings.engine}: "
            f"set workers.engine to {found['engine']}"
        )


def needs_universal(found: dict[str, Any] | None, settings: PretrainSettings) -> bool:
    """Whether another number of workers wrote the checkpoint: DeepSpeed reads it in its universal form."""
    return bool(found) and found["workers"] != settings.workers.num
