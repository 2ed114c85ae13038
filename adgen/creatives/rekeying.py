"""Manifests that version 0.1 wrote say what users clicked: their fingerprints are plain hashes over the history. The first
refresh of a later version writes those of earlier runs again, in place; a rollback to them goes on working.
"""

import tempfile
from pathlib import Path

from adgen.creatives import layout
from adgen.creatives.compaction import ManifestWriter
from adgen.creatives.documents import RunDocument
from adgen.creatives.names import own_entries
from adgen.creatives.publish import read_pointer
from adgen.creatives.reading import ManifestReader
from adgen.creatives.runs import list_runs
from adgen.creatives.storage import Storage, Taken
from adgen.records import bound_key, public_fingerprint, public_resume_key, with_public_fingerprints


def rewrite_old_manifests(storage: Storage, campaign: str, key: bytes) -> int:
    """Give every sealed run but the published one manifests with keyed fingerprints; how many runs were written again.

    `key` is the campaign key as its file holds it. Done by the refresh that was published in the old run's place. Killed
    anywhere, the next one does it again: the run says that it is done only when the old files are gone.
    """
    done = 0
    pointer, _ = read_pointer(storage, campaign)
    for run in list_runs(storage, campaign):
        is_old = not run.keyed_fingerprints and run.manifest and not run.unfinished and run.state != "ABANDONED"
        if is_old and not (pointer and pointer.run_id == run.run_id):
            done += _rewritten(storage, run, bound_key(key, campaign))
    return done


def _rewritten(storage: Storage, run: RunDocument, key: bytes) -> bool:
    """Whether the run's manifest is written again; False where somebody else changed the run."""
    kept_pictures = "unpasted" in storage.children(layout.private_campaign(run.campaign))  # one request, or one for each row
    with tempfile.TemporaryDirectory(prefix="adgen-rekeying-") as folder:
        writer = ManifestWriter(storage, run.campaign, run.run_id, Path(folder))
        for table in ManifestReader(storage, run).tables():
            if kept_pictures:
                _rename_unpasted(storage, run.campaign, table.select(["pair_id", "fingerprint"]).to_pylist(), key)
            writer.write(with_public_fingerprints(table, key))
        files, _ = writer.close()
    document_key = layout.run_document(run.campaign, run.run_id)
    stored = storage.get(document_key)
    try:
        if stored is None or RunDocument.model_validate_json(stored.data) != run:
            return False
        run = _next(run, manifest=files, resume_key=public_resume_key(key, run.resume_key))
        etag = storage.swap_or_find(document_key, run.to_bytes(), stored.etag)
        for entry in list(own_entries(storage, f"{layout.run(run.campaign, run.run_id)}manifest/")):
            if entry.key not in {file.key for file in files}:
                storage.delete(entry.key)
        storage.swap_or_find(document_key, _next(run, keyed_fingerprints=True).to_bytes(), etag)
    except Taken:
        return False
    return True


def _next(run: RunDocument, **changes) -> RunDocument:
    # Not updated_at: clean-up takes its distance from created_at for how long a run may take.
    return run.model_copy(update={"heartbeat": run.heartbeat + 1} | changes)


def _rename_unpasted(storage: Storage, campaign: str, rows: list[dict], key: bytes) -> None:
    """What an evaluation kept is named by the fingerprint."""
    for row in rows:
        new = public_fingerprint(key, row["fingerprint"])
        if new == row["fingerprint"]:
            continue
        old_key = layout.unpasted_picture(campaign, row["pair_id"], row["fingerprint"])
        if stored := storage.get(old_key):
            storage.put(layout.unpasted_picture(campaign, row["pair_id"], new), stored.data)
            storage.delete(old_key)
