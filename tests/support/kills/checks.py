"""What must hold of a store after every kill."""

import json
from collections import UserList
from collections.abc import Iterator, Sequence

from adgen.creatives import layout
from adgen.creatives.documents import RunDocument
from adgen.creatives.journal import Journal, from_parquet
from adgen.creatives.names import is_ours
from adgen.creatives.reading import open_published
from adgen.creatives.runs import list_runs, read_run
from adgen.creatives.storage import Storage
from adgen.creatives.verify import verify
from support.kills.scene import CAMPAIGN, Scene, comparable


class Faults(UserList):
    """What did not hold, each once."""

    def add(self, fault: str) -> None:
        """Note it."""
        if fault not in self:
            self.append(fault)


def check_store(
    scene: Scene,
    storage: Storage,
    version: str,
    engine: str,
    commands: Sequence[str],
    forgotten: str | None,
    faults: Faults,
) -> None:
    """Rows equal an undisturbed run's; nothing is doubled, missing or left; a forgotten user is nowhere."""
    published = open_published(storage, CAMPAIGN)
    shown = _version_of(published.run, scene, version)
    possible = {version if "refresh" in commands else "B"} | ({"A", "B"} if "rollback" in commands else set())
    if shown not in possible:
        faults.add(f"version {shown} is published, possible are {sorted(possible)}")
    gone = scene.pairs[forgotten] if forgotten else set()
    wanted = {key: row for key, row in scene.rows[shown, engine].items() if key[0] not in gone}
    found = comparable(published.rows())
    if found != wanted:
        different = [key[0] for key in wanted if key in found and found[key] != wanted[key]]
        faults.add(
            f"published rows of version {shown}: {len(wanted.keys() - found.keys())} missing, {len(found.keys() - wanted.keys())} "
            f"too many, {len(different)} different: {different[:2]}"
        )
    faults.extend(f"verify: {problem}" for problem in verify(storage, CAMPAIGN).problems)
    _check_what_is_left(storage, commands, faults)
    if forgotten:
        _check_forgotten(scene, storage, forgotten, faults)


def planned_and_done(storage: Storage) -> dict[str, tuple[int, set[int]]]:
    """Of each planned run: pairs that engines are to make, and the shards of those that are committed."""
    found = {}
    for run in list_runs(storage, CAMPAIGN):
        if storage.head(layout.plan_document(CAMPAIGN, run.run_id)):
            journal = Journal(storage, CAMPAIGN, run.run_id)
            parts = [part for part in journal.read_plan().parts if part.kind == "generate"]
            found[run.run_id] = sum(part.rows for part in parts), {part.index for part in parts} & journal.done()
    return found


def _version_of(run: RunDocument, scene: Scene, version: str) -> str:
    origin = run.erased_from[0] if run.erased_from else run.run_id
    return scene.versions.get(origin, version)


def _check_what_is_left(storage: Storage, commands: Sequence[str], faults: Faults) -> None:
    entries = [entry.key for entry in storage.entries("")]
    faults.extend(f"{key} is left of a probe" for key in entries if key.startswith(layout.PROBES))
    faults.extend(f"{key} is no key of ours" for key in entries if not is_ours(key))
    runs = list_runs(storage, CAMPAIGN)
    if "refresh" in commands:
        faults.extend(f"run {run.run_id} is left {run.state}, pointer {run.pointer}" for run in runs if run.unfinished)
    known = {run.run_id for run in runs}
    pointer = json.loads(storage.read(layout.pointer(CAMPAIGN)))
    if pointer["run_id"] not in known or read_run(storage, CAMPAIGN, pointer["run_id"]).state != "COMPLETE":
        faults.add(f"the pointer names {pointer['run_id']}, which is not COMPLETE")
    for run in runs:
        if run.manifest and run.state == "COMPLETE":
            faults.extend(f"{file.key} of a COMPLETE run is gone" for file in run.manifest if storage.head(file.key) is None)


def _check_forgotten(scene: Scene, storage: Storage, user: str, faults: Faults) -> None:
    """Neither the user nor a pair of the user's is named anywhere, in whatever encoding, and their pictures are gone."""
    names = {user, *scene.pairs[user]}
    for key, text in texts(storage):
        faults.extend(f"{key} names {name}, who is forgotten" for name in names if name in text)
    rows = [row for found in scene.rows.values() for row in found.values()]
    theirs = {row["uri"] for row in rows if row["pair_id"] in names}
    others = {row["uri"] for row in rows if row["pair_id"] not in names}
    faults.extend(f"{uri} shows what a forgotten user was shown" for uri in theirs - others - {None} if storage.head(uri))


def texts(storage: Storage) -> Iterator[tuple[str, str]]:
    """Each file's name, and it as text: tables row by row."""
    for entry in list(storage.entries("")):
        if entry.key.startswith(layout.OBJECTS):
            continue
        stored = storage.get(entry.key)
        if stored is None:
            continue
        is_table = entry.key.endswith(".parquet")
        yield entry.key, str(from_parquet(stored.data).to_pylist()) if is_table else stored.data.decode("utf-8", "replace")
