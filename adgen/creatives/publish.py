"""The end of a run: seal its manifest in run.json, then move the campaign's pointer to it.

In this order, a reader of the pointer finds a sealed run whatever dies where. Each step done again does nothing new:
files are named by content, run.json says `pending` from before the swap, and a pointer that names us is our success.
"""

from adgen.creatives import layout
from adgen.creatives.compaction import ROWS_PER_FILE, compact
from adgen.creatives.documents import Counts, ManifestFile, Pointer, RunDocument, parse_document, utc_now
from adgen.creatives.journal import Journal
from adgen.creatives.runs import Run, erased_since, read_run
from adgen.creatives.storage import Storage
from adgen.creatives.tombstones import Tombstones
from adgen.errors import OwnedElsewhere, RunError, StoreError


def read_pointer(storage: Storage, campaign: str) -> tuple[Pointer | None, str | None]:
    """The pointer and its etag, for one who will swap it; (None, None) before the first publish."""
    key = layout.pointer(campaign)
    stored = storage.get(key)
    if stored is None:
        return None, None
    return parse_document(Pointer, stored.data, storage.address(key)), stored.etag


def seal(
    run: Run,
    *,
    state: str = "COMPLETE",
    publish: bool = True,
    note: str = "",
    rows_per_file: int = ROWS_PER_FILE,
    tombstones: Tombstones | None = None,
    min_ok_share: float = 0.0,
) -> None:
    """Compact the journal and write state, counts and file list to run.json. Nothing to do if that is done already.

    With `tombstones`, users who were forgotten since the plan are left out. A COMPLETE run with fewer ok rows than `min_ok_share`
    of the published run's becomes HELD, and can be published when the same command asks for less."""
    if state not in ("COMPLETE", "PARTIAL", "HELD"):
        raise ValueError(f"{state}: a sealed run is COMPLETE, PARTIAL or HELD")
    if not run.document.unfinished or run.document.pointer == "pending":
        return
    files, counts = _compacted(run, tombstones, rows_per_file)
    verdict = {}
    if state == "COMPLETE" and (found := _too_few_ok(run, counts, min_ok_share)):
        state, note = "HELD", found
        verdict = {"gate": (run.document.gate or {}) | {"passed": False, "reasons": [found]}}
    pointer = "pending" if publish and state != "HELD" else "untouched"
    owner = run.owner if pointer == "pending" else None
    sealed = {"counts": counts, "manifest": files, "keyed_fingerprints": tombstones is not None} | verdict
    run.update(state=state, pointer=pointer, owner=owner, note=note, **sealed)


def _too_few_ok(run: Run, counts: Counts, min_ok_share: float) -> str:
    """Why a run with these counts must not take the published run's place; "" if it may."""
    pointer, _ = read_pointer(run.storage, run.campaign)
    published = read_run(run.storage, run.campaign, pointer.run_id).counts if pointer and min_ok_share else None
    if published is None or counts.ok_pairs >= min_ok_share * published.ok_pairs:
        return ""
    return (
        f"{counts.ok} rows are ok, under {min_ok_share:.0%} of the {published.ok} of the published run {pointer.run_id}; it stays. "
        "Publish the new one with publish_anyway if fewer are meant"
    )


def publish(run: Run, tombstones: Tombstones | None = None, rows_per_file: int = ROWS_PER_FILE) -> Pointer:
    """Move the pointer to the sealed run if it still is the one that the plan was made against; the pointer.

    A pointer that only `forget` moved since is followed: the run leaves out who was forgotten, which takes `tombstones`, and
    is published in its place. StoreError naming the run that was published meanwhile otherwise; this run then is HELD.
    """
    if run.document.pointer != "pending":
        raise RunError(f"run {run.run_id} is {run.document.state} and not sealed for publishing; call seal() first")
    plan = Journal(run.storage, run.campaign, run.run_id).read_plan()
    generation, etag, previous = plan.pointer_generation, plan.pointer_etag, plan.base_run
    while True:
        try:
            pointer = _swap(run.storage, run.document, generation + 1, etag, previous)
            break
        except _OtherPublished as error:
            moved = erased_since(run.storage, run.campaign, plan) if tombstones else None
            if moved is None or moved.etag == etag:
                run.update(state="HELD", pointer="untouched", owner=None, note=str(error))
                raise StoreError(str(error)) from None
            generation, etag, previous = moved.generation, moved.etag, moved.run_id
            _seal_again(run, tombstones, rows_per_file)
    try:
        run.update(pointer="moved", generation=pointer.generation, owner=None)
    except OwnedElsewhere:
        _take_back(run, pointer, previous)
        raise
    return pointer


def _compacted(run: Run, tombstones: Tombstones | None, rows_per_file: int) -> tuple[tuple[ManifestFile, ...], Counts]:
    journal = Journal(run.storage, run.campaign, run.run_id, tombstones)
    plan = journal.read_plan()
    return compact(journal, plan, rows_per_file, without=journal.forgotten_pairs(plan))


def _seal_again(run: Run, tombstones: Tombstones, rows_per_file: int) -> None:
    """A sealed run without those who were forgotten since; what only the first manifest named goes."""
    before = run.document.manifest
    files, counts = _compacted(run, tombstones, rows_per_file)
    run.update(manifest=files, counts=counts)
    for key in {file.key for file in before} - {file.key for file in files}:
        run.storage.delete(key)


def finish(
    run: Run,
    *,
    partial: bool = False,
    publish_partial: bool = False,
    held: str = "",
    rows_per_file: int = ROWS_PER_FILE,
    tombstones: Tombstones | None = None,
    min_ok_share: float = 0.0,
) -> Pointer | None:
    """Seal and publish: COMPLETE moves the pointer; PARTIAL (a run with a limit) only if asked to. The pointer, or None.

    `held` says why the run must not be published: it ends HELD, whole and with its pictures, for people to look at.
    """
    seal(
        run,
        state="HELD" if held else "PARTIAL" if partial else "COMPLETE",
        publish=not partial or publish_partial,
        note=held,
        rows_per_file=rows_per_file,
        tombstones=tombstones,
        min_ok_share=min_ok_share,
    )
    return publish(run, tombstones, rows_per_file) if run.document.pointer == "pending" else None


def rollback(storage: Storage, campaign: str, run_id: str) -> Pointer:
    """Move the pointer to an older COMPLETE run, as a new generation; the pointer.

    StoreError if the run is not COMPLETE, a file of its manifest is gone, or another writer moved the pointer.
    """
    document = read_run(storage, campaign, run_id)
    now, etag = read_pointer(storage, campaign)
    _check_publishable(storage, document)
    if now is None:
        raise StoreError(f"campaign {campaign}: nothing is published, so there is nothing to roll back")
    if now.run_id == run_id:
        return now
    pointer = _swap(storage, document, now.generation + 1, etag, now.run_id)
    # A clean-up marks a run before it looks at the pointer; we look at the mark after moving it. One sees the other.
    try:
        _check_publishable(storage, read_run(storage, campaign, run_id))
    except StoreError:
        _swap(storage, read_run(storage, campaign, now.run_id), pointer.generation + 1, _etag(storage, campaign), run_id)
        raise
    return pointer


def _take_back(run: Run, pointer: Pointer, before: str | None) -> None:
    """Point at the run published before again, where another driver ended this run before the pointer moved to it."""
    if before and read_run(run.storage, run.campaign, run.run_id).state == "ABANDONED":
        document = read_run(run.storage, run.campaign, before)
        _swap(run.storage, document, pointer.generation + 1, _etag(run.storage, run.campaign), run.run_id)


class _OtherPublished(StoreError):
    """The pointer moved to another run since it was read."""


def _swap(storage: Storage, run: RunDocument, generation: int, etag: str | None, previous: str | None) -> Pointer:
    """The pointer made to name `run` after `previous`, or found naming it although the swap's response said otherwise."""
    key = layout.pointer(run.campaign)
    pointer = Pointer(
        generation=generation,
        run_id=run.run_id,
        published_at=utc_now(),
        manifest_digest=run.manifest_digest(),
        previous_run_id=previous,
    )
    try:
        storage.swap(key, pointer.to_bytes(), etag)
        return pointer
    except StoreError as error:
        there, there_etag = read_pointer(storage, run.campaign)
        if there and there.run_id == run.run_id and run.has_manifest_digest(there.manifest_digest):
            return there
        if there_etag != etag:
            raise _OtherPublished(
                f"campaign {run.campaign}: run {there.run_id if there else 'none'} was published while run "
                f"{run.run_id} was being made; run {run.run_id} is not published. Start the refresh again"
            ) from error
        raise


def _etag(storage: Storage, campaign: str) -> str | None:
    return read_pointer(storage, campaign)[1]


def _check_publishable(storage: Storage, run: RunDocument) -> None:
    if run.state != "COMPLETE":
        raise StoreError(f"run {run.run_id} of campaign {run.campaign} is {run.state}; only a COMPLETE run can be published")
    for file in run.manifest:
        if storage.head(file.key) is None:
            raise StoreError(f"{storage.address(file.key)}: is gone, so run {run.run_id} cannot be published")
