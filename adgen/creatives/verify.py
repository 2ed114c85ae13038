"""Whether everything that a run promises is there: each object of each row, its size in pixels, titles, counts, key ranges,
and a pointer that plain readers can read."""

import io
from array import array
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import imagesize
import pyarrow as pa
import pyarrow.compute as pc

from adgen.creatives import layout
from adgen.creatives.documents import ManifestFile
from adgen.creatives.reading import ManifestReader, PublishedRun, is_wanted, open_published, open_run
from adgen.creatives.references import Outcome, Reference, inspect, references_of
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError
from adgen.records import FAILED, OK, REJECTED

THREADS = 32
MAX_PROBLEMS = 10_000
_ROWS_AT_ONCE = 4096
_PUBLISHABLE = ("COMPLETE", "PARTIAL")


@dataclass
class Verification:
    """rows = ok + missing + mismatched + rejected + failed, of the variants that were looked at; `problems` says what is wrong, one
    line each."""

    run_id: str
    rows: int = 0
    ok: int = 0
    missing: int = 0
    mismatched: int = 0
    rejected: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)

    def report(self, problem: str) -> None:
        """Note a problem; the list is cut at MAX_PROBLEMS, the counts go on."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def verify(
    storage: Storage, campaign: str, run_id: str | None = None, threads: int = THREADS, variants: int | None = None
) -> Verification:
    """Read every object of the published run (or of `run_id`) and compare it with its row, and rows with counts. `variants`: only
    the objects of the first so many of each pair, as a folder holds them that was pulled so."""
    reader = open_run(storage, campaign, run_id) if run_id else open_published(storage, campaign)
    found = Verification(reader.run.run_id)
    if isinstance(reader, PublishedRun):
        _verify_published(reader, campaign, found)
    rows_seen = _RowsSeen()
    with ThreadPoolExecutor(threads) as pool:
        for file in reader.run.manifest:
            for rows in _batches(reader, file, found):
                _verify_rows(storage, [row for row in rows if is_wanted(row, variants)], pool, found)
                rows_seen.see(rows, _needs_title(reader), found)
    rows_seen.end(found)
    _verify_counts(reader, found, rows_seen.counts)
    _verify_users(reader, rows_seen.pairs, found)
    return found


def _verify_published(reader: PublishedRun, campaign: str, found: Verification) -> None:
    key = layout.pointer(campaign)
    if reader.run.state not in _PUBLISHABLE:
        found.report(f"run.json says that the published run is {reader.run.state}; only a COMPLETE one may be published")
    # Twice: a publish between the two readings is no fault.
    if all(reader.storage.shown(key) != reader.storage.read(key) for _ in range(2)):
        address = reader.storage.address(key)
        found.report(f"{address}: is not what was published; the next publish or rollback writes it anew")


def _needs_title(reader: ManifestReader) -> bool:
    """Whether the run's settings let no creative without a title be ok."""
    gates = (reader.run.settings.get("finish") or {}).get("gates") or {}
    return gates.get("title_empty", "reject") == "reject"


def _batches(reader: ManifestReader, file: ManifestFile, found: Verification) -> Iterable[list[dict[str, Any]]]:
    users, num_rows = [], 0
    try:
        for table in reader.tables_of(file):
            num_rows += table.num_rows
            users = [*users[:1], table["user_key"][0].as_py(), table["user_key"][-1].as_py()]
            for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
                yield batch.to_pylist()
    except ConsumerError as error:
        found.report(str(error))
        return
    if num_rows != file.rows:
        found.report(f"{file.key}: has {num_rows} rows, run.json says {file.rows}")
    if users:
        _verify_range(file, users[0], users[-1], found)


def _verify_range(file: ManifestFile, first: str, last: str, found: Verification) -> None:
    said = (file.first_user_key, file.last_user_key)
    if said != (first, last):
        found.report(f"{file.key}: holds user keys {first} to {last}, run.json says {said[0]} to {said[1]}")


# -- rows ------------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    """An object: how it compares, and (width, height) of the picture; (-1, -1) of what is none."""

    outcome: Outcome
    size: tuple[int, int]


def _look(storage: Storage, reference: Reference) -> _Seen:
    outcome, data = inspect(storage, reference)
    return _Seen(outcome, imagesize.get(io.BytesIO(data)) if data else (-1, -1))


def _verify_rows(storage: Storage, rows: list[dict[str, Any]], pool: ThreadPoolExecutor, found: Verification) -> None:
    named = [list(references_of(row)) for row in rows]
    unique = list({reference for references in named for reference in references})
    seen = dict(zip(unique, pool.map(lambda reference: _look(storage, reference), unique), strict=True))
    for row, references in zip(rows, named, strict=True):
        found.rows += 1
        problems = list(_problems(row, references, seen))
        verdict = _verdict(row, [seen[reference].outcome for reference in references], problems)
        setattr(found, verdict, getattr(found, verdict) + 1)
        for problem in problems:
            found.report(f"{_name(row)}: {problem}")


def _problems(row: dict[str, Any], references: list[Reference], seen: dict[Reference, _Seen]) -> Iterable[str]:
    if row["status"] == OK and not references:
        yield "is ok and names no object"
    holders = [holder for holder in (row, *(row["renditions"] or ())) if holder["uri"] is not None]
    for holder, reference in zip(holders, references, strict=True):
        outcome, size = seen[reference]
        said = holder["width"], holder["height"]
        if outcome != OK:
            yield f"{reference.uri} is {outcome}"
        elif None not in said and size != said:
            what = "no picture" if -1 in size else "{} x {} pixels".format(*size)
            yield f"{reference.uri} is {what}, its row says {said[0]} x {said[1]}"


def _verdict(row: dict[str, Any], outcomes: list[Outcome], problems: list[str]) -> str:
    if "missing" in outcomes:
        return "missing"
    return row["status"] if row["status"] in (OK, REJECTED, FAILED) and not problems else "mismatched"


def _name(row: dict[str, Any]) -> str:
    return f"pair {row['pair_id']} variant {row['variant']}"


class _RowsSeen:
    """What rows must be together: in order, counted, each pair of one user, with ranks 0, 1, ... of its variants."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.pairs = array("q")  # 8 bytes for each (user_key, pair_id), which is each pair once if all is well
        self._last = ("", "", -1)
        self._ranks: list[int | None] = []  # of the pair that is being read

    def see(self, rows: list[dict[str, Any]], needs_title: bool, found: Verification) -> None:
        """The next rows of the manifest."""
        for row in rows:
            key = (row["user_key"], row["pair_id"], row["variant"])
            if key <= self._last:
                found.report(f"{_name(row)}: is there twice or out of order")
            if key[:2] != self._last[:2]:
                self._end_pair(found)
                self.pairs.append(hash(row["pair_id"]))
            self._last = key
            self._ranks.append(row["rank"])
            if needs_title and row["status"] == OK and not row["title"]:
                found.report(f"{_name(row)}: is ok and has no title")
            self._count(row)

    def end(self, found: Verification) -> None:
        """After the last row."""
        self._end_pair(found)
        self.counts["pairs"] = len(self.pairs)

    def _end_pair(self, found: Verification) -> None:
        if sorted(self._ranks, key=lambda rank: -1 if rank is None else rank) != list(range(len(self._ranks))):
            said = ", ".join("none" if rank is None else str(rank) for rank in self._ranks)
            found.report(f"pair {self._last[1]}: its {len(self._ranks)} variants have the ranks {said}")
        self._ranks = []

    def _count(self, row: dict[str, Any]) -> None:
        made = "generated" if row["carried_from"] is None else "carried"
        self.counts.update(("rows", row["status"], made, *(["stale"] if row["stale"] else [])))
        ok, made = row["status"] == OK, row["status"] != FAILED
        self.counts["drawn_again"] += made and (row["attempt"] or 0) > 0
        self.counts["templates"] += ok and row["title_source"] == "template"
        self.counts["plain_backgrounds"] += ok and row["picture_source"] == "plain"
        if row["reason"] is not None:
            self.counts[f"reason {row['reason']}"] += 1


def _verify_counts(reader: ManifestReader, found: Verification, counted: Counter[str]) -> None:
    counts = reader.run.counts
    said = counts.model_dump(exclude={"reasons", "engine_seconds"}) | {
        f"reason {name}": count for name, count in counts.reasons.items()
    }
    if counts.pairs is None:  # of 0.1.0
        said["pairs"] = counted["pairs"]
    for name in [*said, *(name for name in sorted(counted) if name not in said)]:
        if said.get(name, 0) != counted[name]:
            found.report(f"run.json counts {said.get(name, 0)} {name}, the manifest has {counted[name]}")


def _verify_users(reader: ManifestReader, pairs: array, found: Verification) -> None:
    """Name each pair that lies under more than one user_key. The manifest is read again only where there is one."""
    times = pc.value_counts(pa.array(pairs))
    again = set(times.filter(pc.greater(times.field("counts"), 1)).field("values").to_pylist())
    users: dict[str, set[str]] = {}
    for row in _readable_rows(reader) if again else ():
        if hash(row["pair_id"]) in again:
            users.setdefault(row["pair_id"], set()).add(row["user_key"])
    for pair, keys in users.items():
        if len(keys) > 1:
            found.report(f"pair {pair}: lies under {len(keys)} user keys: {', '.join(sorted(keys))}")


def _readable_rows(reader: ManifestReader) -> Iterable[dict[str, Any]]:
    for file in reader.run.manifest:
        with suppress(ConsumerError):  # named already
            for table in reader.tables_of(file):
                yield from table.select(["pair_id", "user_key"]).to_pylist()
