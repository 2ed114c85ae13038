"""Outputs: the store's layout, the protocol that makes a run resumable and never half-published, and its readers.

A consumer:

    run = open_campaign("s3://bucket/ads", "autumn").published()    # pinned: a later publish does not change it
    for row in run.rows(["user_key", "title", "uri", "sha256", "bytes"], where=[("status", "==", "ok")]):
        picture = run.picture(row)                                  # compared with the row's sha256
    row = run.creative("product-7", user_key=user_key)              # one lookup
    for change in run.changes_since(last_run_id): ...               # added, changed, withdrawn

A refresh, from the driver's side:

    storage = open_storage("s3://bucket/ads", S3Access(region="eu-central-1"))
    probe(storage)                                                  # StoreError before any model work
    run = start_or_resume(storage, campaign, resume_key, settings=..., digests=..., versions=..., key_ids=...)
    journal = Journal(storage, campaign, run.run_id)                # picklable; goes to the workers
    with run.beating():
        if not run.resumed:
            pointer, etag = read_pointer(storage, campaign)
            parts = [journal.write_plan_part(index, pairs) for index, pairs in shards]
            journal.commit_plan(parts, settings_digest=..., inputs=..., base_run=...,
                                pointer_etag=etag, pointer_generation=pointer.generation if pointer else 0)
        if run.document.state == "RUNNING":
            for part in journal.unfinished():                       # PlanPart: one dataset row each
                run.check()                                         # OwnedElsewhere once the run is lost
                ...                                                 # a worker, below
        pointer = finish(run)                                       # compact, seal run.json, swap the pointer

and from a worker's:

    pairs = journal.read_plan_part(part)
    reference = put_object(storage, data, "webp")                   # .uri .sha256 .bytes for the row
    journal.commit_part(part, rows, lineage)                        # False: another worker was first

A driver that must stop calls `run.release()` (the same command resumes it at once) or `run.end("FAILED", why)`. Nothing
here imports another part of adgen but its leaves; consumers install this part alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adgen.creatives.campaign import Campaign
    from adgen.creatives.storage import S3Access


def open_campaign(store: str | Path, campaign: str, access: "S3Access | None" = None) -> "Campaign":
    """The campaign in the store at a path, file:// or s3://bucket/prefix. No request is made. `access` says how S3 is reached;
    what it leaves out comes from the environment, as for other AWS tools. StoreError: not a store, or not a campaign's name."""
    from adgen.creatives.campaign import Campaign
    from adgen.creatives.stores import open_storage

    return Campaign(open_storage(store, access), campaign)
