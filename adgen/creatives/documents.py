"""The JSON documents of a store, typed: pointer, run, plan."""

from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adgen.errors import StoreError
from adgen.records import digest

State = Literal["RUNNING", "COMPLETE", "PARTIAL", "HELD", "FAILED", "ABANDONED"]


class Document(BaseModel):
    """Base: reads what a newer version wrote, as far as it knows it; values do not change."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    def to_bytes(self) -> bytes:
        """Indented JSON: people open these files."""
        return self.model_dump_json(indent=1).encode()


D = TypeVar("D", bound=Document)


def parse_document(kind: type[D], data: bytes, address: str) -> D:
    """`data` as `kind`; StoreError naming the address if it is something else."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{address}: not a {kind.__name__}: {field}: {first['msg']}") from None


def utc_now() -> datetime:
    """Now, with its time zone."""
    return datetime.now(UTC)


class ManifestFile(Document):
    """One file of a run's manifest; the keys are the first and last user_key in it."""

    key: str
    rows: int
    bytes: int
    sha256: str
    first_user_key: str
    last_user_key: str


def _named(file: ManifestFile) -> tuple[str, int, str]:
    return file.key, file.rows, file.sha256


class Counts(Document):
    """Manifest rows of a run: ok + rejected + failed = rows = generated + carried. `pairs` are those that the rows are variants of;
    null in runs of 0.1.0, where each row was a pair's only one."""

    rows: int = 0
    pairs: int | None = None
    ok: int = 0
    rejected: int = 0
    failed: int = 0
    carried: int = 0
    generated: int = 0
    stale: int = 0
    drawn_again: int = 0  # rows whose title or picture took more than one attempt
    templates: int = 0  # ok rows whose title is by template
    plain_backgrounds: int = 0  # ok rows
    engine_seconds: float | None = None  # engine time of the rows that were generated; null in runs of before 0.2.0
    reasons: dict[str, int] = Field(default_factory=dict)

    @property
    def ok_pairs(self) -> float:
        """ok rows as if each pair had one: what runs with different numbers of variants are compared by."""
        return self.ok if self.pairs is None or not self.rows else self.ok * self.pairs / self.rows


class RunDocument(Document):
    """run.json. Consumers read `manifest` and `counts`; the rest says how the run was made and who drives it.

    `pointer` is what this run did to the campaign's pointer: `pending` from just before the swap to just after it.
    """

    schema_version: int = 1
    campaign: str
    run_id: str
    state: State = "RUNNING"
    pointer: Literal["untouched", "pending", "moved"] = "untouched"
    generation: int | None = None
    resume_key: str
    owner: str | None = None
    heartbeat: int = 0
    created_at: datetime
    updated_at: datetime
    base_run: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    digests: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    key_ids: dict[str, str] = Field(default_factory=dict)
    duplicates: int = 0  # rows of the table pairs that named a pair again; it has one manifest row
    left_out: dict[str, int] = Field(default_factory=dict)  # input rows whose id is no text, by table and column
    num_slots: int | None = None  # creatives that each engine makes at once; the same when the run is resumed
    counts: Counts | None = None
    manifest: tuple[ManifestFile, ...] = ()
    gate: dict[str, Any] | None = None  # what a sample of the run's creatives came to, and whether it was published anyway
    note: str = ""
    erased_from: tuple[str, ...] = ()  # a copy without forgotten users: the runs that it stands for, the oldest first

    keyed_fingerprints: bool = False  # none of its manifest's fingerprints can be guessed from a history; false: version 0.1

    @property
    def unfinished(self) -> bool:
        """Whether the same command would go on with this run."""
        return self.state == "RUNNING" or self.pointer == "pending"

    def manifest_digest(self) -> str:
        """The digest of the file list that the pointer repeats, key ranges included: readers of one user trust them."""
        return digest(*(part for file in self.manifest for part in (*_named(file), file.first_user_key, file.last_user_key)))

    def has_manifest_digest(self, said: str) -> bool:
        """Whether a pointer that says so names this file list; pointers of 0.1.0 say nothing of key ranges."""
        return said in (self.manifest_digest(), digest(*(part for file in self.manifest for part in _named(file))))


class Pointer(Document):
    """latest.json: which run is published. The generation grows with each swap, so its bytes never repeat."""

    generation: int
    run_id: str
    published_at: datetime
    manifest_digest: str
    previous_run_id: str | None = None  # what was published before; consumers may still be reading it


class PlanPart(Document):
    """One shard of the plan; `kind` says whether its rows are generated or carried."""

    index: int
    rows: int
    bytes: int
    sha256: str
    kind: Literal["generate", "carry"] = "generate"


class Plan(Document):
    """plan.json: that it exists commits the plan."""

    parts: tuple[PlanPart, ...]
    settings_digest: str
    inputs: dict[str, str] = Field(default_factory=dict)
    base_run: str | None = None
    pointer_etag: str | None = None
    pointer_generation: int = 0
    created_at: datetime
    forgotten: str | None = None  # digest of the tombstones that its rows were compared with

    @property
    def rows(self) -> int:
        """Rows over all parts."""
        return sum(part.rows for part in self.parts)


class DriverSlot(Document):
    """driver.json: the run being driven and by whom; `turn` grows, so that its bytes never repeat."""

    run_id: str
    owner: str
    turn: int
