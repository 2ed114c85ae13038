"""An earlier evaluation to compare with: its record, and which of its scores the same networks gave."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adgen.creatives.storage import S3Access
from adgen.creatives.stores import open_storage
from adgen.errors import SettingsError
from adgen.evaluation.results.pictures import StoredPictures
from adgen.evaluation.results.rows import check_rows, read_rows
from adgen.evaluation.results.set_scores import SetScore
from adgen.evaluation.scores import names_of, scores_that_need
from adgen.evaluation.scoring.creatives import SCORED
from adgen.evaluation.scoring.networks import NamedNetwork

RECORD = "summary.json"  # written last: where it lies, the evaluation is whole

_PAIRED = tuple(name for name in names_of("title", "picture", "set") if not scores_that_need([name], "distance"))


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


def scored_by_others(
    mine: Mapping[str, NamedNetwork | None], record: Mapping[str, Any], names: Sequence[str] = _PAIRED
) -> list[str]:
    """Those of `names` that other networks gave in the record: their values differ even where pictures do not."""
    unknown = {"digest": None}  # of records that do not name their networks
    theirs = record.get("networks", record.get("judges", dict.fromkeys(mine, unknown)))
    differing = [
        kind for kind, network in mine.items() if network and theirs.get(kind) and theirs[kind]["digest"] != network.digest
    ]
    return scores_that_need(names, *differing)


def distances_of_both(
    mine: Mapping[str, NamedNetwork | None], sets: Mapping[str, SetScore], record: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """Distances that both have from the same network: (here, there)."""
    ours = scores_that_need(sets, "distance")
    theirs, others = record.get("sets") or {}, scored_by_others(mine, record, ours)
    return {name: (sets[name].value, theirs[name]["value"]) for name in ours if name in theirs and name not in others}


def pictures_of(record: Mapping[str, Any], access: S3Access) -> StoredPictures:
    """The creatives of an earlier evaluation, as far as their stores are still there."""
    return StoredPictures([open_storage(run["store"], access) for run in record.get("runs") or ()])
