"""Outputs: the store's layout, the protocol that makes a run resumable and never half-published, and its readers.

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
