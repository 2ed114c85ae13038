"""Which catalogs may go: those that no run names, and that no planner may be about to name."""

import time

from adgen.creatives import layout
from adgen.creatives.cleanup import SHORTEST_RUN_SECONDS
from adgen.creatives.documents import RunDocument
from adgen.creatives.names import campaigns, own_entries
from adgen.creatives.runs import list_runs
from adgen.creatives.storage import Storage
from adgen.shop.catalog.files import drop_last, index_key, last_names, named_keys, read_index


def remove_unnamed_catalogs(storage: Storage, now: float | None = None) -> tuple[int, int]:
    """Remove catalog files that no run of the store names, older than two runs; how many, and their bytes.

    A campaign's last catalog stays as long as one of its runs was made with that model: the next planner starts from it.
    Nothing of a model goes while a run of it is being planned. `now` is seconds since 1970.
    """
    runs = [run for campaign in campaigns(storage) for run in list_runs(storage, campaign) if run.state != "ABANDONED"]
    longest = max((run.updated_at - run.created_at).total_seconds() for run in runs) if runs else 0.0
    born_before = (time.time() if now is None else now) - 2 * max(longest, SHORTEST_RUN_SECONDS)
    files = size = 0
    for model in storage.children(layout.CATALOGS):
        of_model = [run for run in runs if run.digests.get("model") == model]
        if any(run.unfinished and "catalog" not in run.digests for run in of_model):
            continue
        entries = [entry for entry in own_entries(storage, f"{layout.CATALOGS}{model}/") if "/last/" not in entry.key]
        kept = _kept(storage, model, of_model, {entry.key for entry in entries})
        for entry in entries:
            if entry.modified < born_before and entry.key not in kept:
                storage.delete(entry.key)
                files, size = files + 1, size + entry.size
    return files, size


def _kept(storage: Storage, model: str, runs: list[RunDocument], present: set[str]) -> set[str]:
    """Keys of the indexes that runs of the model name or their campaigns begin from, and of those indexes' files."""
    indexes = {run.digests["catalog"] for run in runs if "catalog" in run.digests}
    campaigns_of_model = {run.campaign for run in runs}
    for campaign, index in last_names(storage, model).items():
        if campaign in campaigns_of_model:
            indexes.add(index)
        else:
            drop_last(storage, model, campaign)  # it would name an index that is about to go
    kept: set[str] = set()
    for name in indexes:
        if index_key(model, name) in present:
            kept |= named_keys(read_index(storage, model, name))
    return kept
