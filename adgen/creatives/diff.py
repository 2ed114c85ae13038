"""The table of a `Diff`: how many creatives changed for which cause, some of them one by one, and all of them in a file."""

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adgen.creatives.causes import Diff, Explained
from adgen.creatives.reading import open_run
from adgen.creatives.storage import Storage
from adgen.creatives.whole_files import whole_file


@dataclass
class DiffSummary:
    """What `adgen diff` says. A change with two causes counts for both in `why`, whose keys are `kind: cause`."""

    campaign: str
    before: str
    after: str
    added: int = 0
    changed: int = 0
    withdrawn: int = 0
    why: dict[str, int] = field(default_factory=dict)
    note: str = ""
    changes: list[dict[str, Any]] = field(default_factory=list)


def diff_runs(storage: Storage, campaign: str, before: str, after: str, rows: int = 20, out: Path | None = None) -> DiffSummary:
    """Compare two sealed runs; the first `rows` changes are told one by one, all of them in `out`, one JSON object a line.
    ConsumerError: a run is not there, or its manifest cannot be read."""
    found = Diff(storage, *(open_run(storage, campaign, run_id).run for run_id in (before, after)))
    done, why = DiffSummary(campaign, before, after), Counter()
    with whole_file(out) if out else nullcontext() as file:
        for each in found:
            setattr(done, each.change.kind, getattr(done, each.change.kind) + 1)
            why.update(f"{each.change.kind}: {cause}" for cause in each.why)
            if len(done.changes) < rows or file:
                told = _told(each)
                done.changes += [told] if len(done.changes) < rows else []
                if file:
                    file.write(json.dumps(told, ensure_ascii=False, default=str) + "\n")
    done.why, done.note = dict(sorted(why.items())), found.note
    return done


def _told(each: Explained) -> dict[str, Any]:
    change = each.change
    row = {name: change.row[name] for name in ("pair_id", "variant", "user_key", "product_id", "locale", "channel")}
    sides = {"before": change.before, "after": change.after}
    shown = {
        side: side_row and {n: side_row[n] for n in ("status", "reason", "rank", "title", "uri")}
        for side, side_row in sides.items()
    }
    return {"kind": change.kind, "why": list(each.why), **row, **shown}
