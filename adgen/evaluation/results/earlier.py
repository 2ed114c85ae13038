"""An earlier evaluation to compare with: its record, and which of its scores the same judges gave."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adgen.creatives.storage import S3Access
from adgen.creatives.stores import open_storage
from adgen.errors import SettingsError
from adgen.evaluation.results.diversity import SEED_DIVERSITY, USER_DIVERSITY
from adgen.evaluation.results.pictures import StoredPictures
from adgen.evaluation.results.rows import check_rows, read_rows
from adgen.evaluation.results.set_scores import SetScore
from adgen.evaluation.scoring.creatives import ROW_SCORES, SCORED
from adgen.evaluation.scoring.networks import SCORES_OF, Judge

RECORD = "summary.json"  # written last: where it lies, the evaluation is whole

_PAIRED = (*ROW_SCORES, SEED_DIVERSITY, USER_DIVERSITY)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a whole evaluation. SettingsError: there is none, or another version's."""
    check_rows(folder)
    next(read_rows(folder, SCORED.names), None)  # before hours of work: whether this version wrote them
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{folder}: {RECORD} is missing: the evaluation there is not finished") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{folder / RECORD}: cannot be read as JSON: {error}") from None


def judged_otherwise(mine: Mapping[str, Judge | None], record: Mapping[str, Any], names: Sequence[str] = _PAIRED) -> list[str]:
    """Those of `names` that other judges gave in the record: their values differ even where pictures do not."""
    unknown = {"digest": None}  # of records that did not tell yet
    theirs = record.get("judges", dict.fromkeys(mine, unknown))
    differing = [kind for kind, judge in mine.items() if judge and theirs.get(kind) and theirs[kind]["digest"] != judge.digest]
    return [name for name in names if name.startswith(tuple(start for kind in differing for start in SCORES_OF[kind]))]


def distances_beside(
    mine: Mapping[str, Judge | None], sets: Mapping[str, SetScore], record: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """Distances that both have from the same network: (here, there)."""
    ours = [name for name in sets if name.startswith(SCORES_OF["distance"])]
    theirs, others = record.get("sets") or {}, judged_otherwise(mine, record, ours)
    return {name: (sets[name].value, theirs[name]["value"]) for name in ours if name in theirs and name not in others}


def pictures_of(record: Mapping[str, Any], access: S3Access) -> StoredPictures:
    """The creatives of an earlier evaluation, as far as their stores are still there."""
    return StoredPictures([open_storage(run["store"], access) for run in record.get("runs") or ()])
