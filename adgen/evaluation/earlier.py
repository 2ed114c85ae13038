"""An earlier evaluation to compare with: its record, and which of its scores the same judges gave."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adgen.creatives.storage import S3Access, open_storage
from adgen.errors import SettingsError
from adgen.evaluation.creative_scores import ROW_SCORES
from adgen.evaluation.judges import SCORES_OF, Judge
from adgen.evaluation.report.pictures import StoredPictures
from adgen.evaluation.stored_rows import check_rows
from adgen.evaluation.summary import CORPUS_BLEU

RECORD = "summary.json"  # written last: where it lies, the evaluation is whole


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a whole evaluation. SettingsError: there is none."""
    check_rows(folder)
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{folder}: {RECORD} is missing: the evaluation there is not finished") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{folder / RECORD}: cannot be read as JSON: {error}") from None


def judged_otherwise(mine: Mapping[str, Judge | None], record: Mapping[str, Any], names: Sequence[str] = ROW_SCORES) -> list[str]:
    """Those of `names` that other judges gave in the record: their values differ even where pictures do not."""
    theirs = record.get("judges") or {}
    differing = [kind for kind, judge in mine.items() if judge and (theirs.get(kind) or {}).get("digest") != judge.digest]
    return [name for name in names if name.startswith(tuple(start for kind in differing for start in SCORES_OF[kind]))]


def sets_beside(
    mine: Mapping[str, Judge | None], here: Mapping[str, Any], there: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """Scores of many creatives together that both records have from the same judges: (here, there)."""
    ours, theirs = _together(here), _together(there)
    others = judged_otherwise(mine, there, tuple(ours))
    return {name: (value, theirs[name]) for name, value in ours.items() if name in theirs and name not in others}


def _together(record: Mapping[str, Any]) -> dict[str, float]:
    titles = (record.get("scores") or {}).get(CORPUS_BLEU)
    sets = {name: each["value"] for name, each in (record.get("sets") or {}).items()}
    return ({CORPUS_BLEU: titles["mean"]} if titles else {}) | sets


def pictures_of(record: Mapping[str, Any], access: S3Access) -> StoredPictures:
    """The creatives of an earlier evaluation, as far as their stores are still there."""
    return StoredPictures([open_storage(run["store"], access) for run in record.get("runs") or ()])
