"""Whether everything that a run promises is there: each object of each row, and the counts."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from adgen.creatives.documents import ManifestFile
from adgen.creatives.reading import ManifestReader, open_published, open_run
from adgen.creatives.references import Reference, inspect, references_of
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError
from adgen.records import FAILED, OK, REJECTED

THREADS = 32
MAX_PROBLEMS = 10_000
_ROWS_AT_ONCE = 4096


@dataclass
class Verification:
    """rows = ok + missing + mismatched + rejected + failed; `problems` says what is wrong, one line each."""

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


def verify(storage: Storage, campaign: str, run_id: str | None = None, threads: int = THREADS) -> Verification:
    """Read every object of the published run (or of `run_id`) and compare it with its row, and rows with counts."""
    reader = open_run(storage, campaign, run_id) if run_id else open_published(storage, campaign)
    found, statuses = Verification(reader.run.run_id), Counter()
    last = ("", "", -1)
    with ThreadPoolExecutor(threads) as pool:
        for file in reader.run.manifest:
            for rows in _batches(reader, file, found):
                _verify_rows(storage, rows, pool, found)
                statuses.update(row["status"] for row in rows)
                last = _verify_order(rows, last, found)
    _verify_counts(reader, found, statuses)
    return found


def _batches(reader: ManifestReader, file: ManifestFile, found: Verification) -> Iterable[list[dict[str, Any]]]:
    try:
        table = reader.table(file)
    except ConsumerError as error:
        found.report(str(error))
        return
    if table.num_rows != file.rows:
        found.report(f"{file.key}: has {table.num_rows} rows, run.json says {file.rows}")
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        yield batch.to_pylist()


def _verify_rows(storage: Storage, rows: list[dict[str, Any]], pool: ThreadPoolExecutor, found: Verification) -> None:
    named = [list(references_of(row)) for row in rows]
    unique = list({reference for references in named for reference in references})
    outcome = dict(zip(unique, pool.map(lambda reference: inspect(storage, reference), unique), strict=True))
    for row, references in zip(rows, named, strict=True):
        found.rows += 1
        verdict = _verdict(row, references, outcome)
        setattr(found, verdict, getattr(found, verdict) + 1)
        if row["status"] == OK and not references:
            found.report(f"pair {row['pair_id']} variant {row['variant']}: is ok and names no object")
        for reference in references:
            if outcome[reference] != "ok":
                found.report(f"pair {row['pair_id']} variant {row['variant']}: {reference.uri} is {outcome[reference]}")


def _verdict(row: dict[str, Any], references: list[Reference], outcome: dict[Reference, str]) -> str:
    outcomes = {outcome[reference] for reference in references}
    if row["status"] == OK and not references:
        return "mismatched"
    for bad in ("missing", "mismatched"):
        if bad in outcomes:
            return bad
    return row["status"] if row["status"] in (OK, REJECTED, FAILED) else "mismatched"


def _verify_order(rows: list[dict[str, Any]], last: tuple, found: Verification) -> tuple:
    for row in rows:
        key = (row["user_key"], row["pair_id"], row["variant"])
        if key <= last:
            found.report(f"pair {row['pair_id']} variant {row['variant']}: is there twice or out of order")
        last = key
    return last


def _verify_counts(reader: ManifestReader, found: Verification, statuses: Counter) -> None:
    made = {"rows": found.rows, OK: statuses[OK], REJECTED: statuses[REJECTED], FAILED: statuses[FAILED]}
    for name, count in made.items():
        said = getattr(reader.run.counts, name)
        if said != count:
            found.report(f"run.json counts {said} {name}, the manifest has {count}")
