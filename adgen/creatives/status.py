"""How the campaigns of a store stand, for people and for monitors: what is published, how old and how good it is, what it cost."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from adgen.creatives import layout
from adgen.creatives.documents import RunDocument, parse_document, utc_now
from adgen.creatives.names import campaigns, run_ids
from adgen.creatives.reading import PublishedRun, open_published
from adgen.creatives.storage import Storage
from adgen.creatives.whole_files import whole_file
from adgen.errors import AdgenError, ConsumerError, SettingsError

ALERT, UNREADABLE = 3, 4
"""Exit codes of `adgen status`."""
_FAILED = ("FAILED", "HELD")


@dataclass(frozen=True)
class Limits:
    """What a monitor asks for; None asks for nothing. Shares are from 0 to 1."""

    max_age_hours: float | None = None
    min_ok: float | None = None
    max_rejected: float | None = None
    max_fallback: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_ok", "max_rejected", "max_fallback"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise SettingsError(f"--{name.replace('_', '-')} {share:g}: is a share from 0 to 1")


@dataclass
class CampaignStatus:
    """One campaign. Shares of `rows`, those of templates and plain backgrounds of ok rows; None: unknown, or nothing published."""

    campaign: str
    run_id: str | None = None
    generation: int | None = None
    published_at: datetime | None = None
    age_seconds: float | None = None
    rows: int | None = None
    ok_share: float | None = None
    rejected_share: float | None = None
    failed_share: float | None = None
    stale_share: float | None = None
    template_share: float | None = None
    """Titles by template (title_source)."""
    plain_background_share: float | None = None
    """Plain backgrounds (picture_source)."""
    generated: int | None = None
    engine_seconds: float | None = None
    """Of the engines, for what the run generated; None: made before 0.2.0."""
    cost: float | None = None
    """engine_seconds at forecast.price_an_hour of the run's settings, in its currency; None: no price was set."""
    last_run_id: str | None = None
    last_run_state: str | None = None
    alerts: dict[str, str] = field(default_factory=dict)
    """What a monitor should wake somebody for: the check's name and what was found."""

    @property
    def exit_code(self) -> int:
        return UNREADABLE if "unreadable" in self.alerts else ALERT if self.alerts else 0


@dataclass
class StoreStatus:
    """All campaigns of a store, by name."""

    store: str
    campaigns: list[CampaignStatus]

    @property
    def exit_code(self) -> int:
        """0: no alert; ALERT: at least one; UNREADABLE: something published cannot be read."""
        return max(each.exit_code for each in self.campaigns)


def store_status(storage: Storage, limits: Limits | None = None, now: datetime | None = None) -> StoreStatus:
    """How each campaign stands. ConsumerError: there is none; StoreError: the store cannot be listed."""
    names = campaigns(storage)
    if not names:
        raise ConsumerError(f"{storage.uri}: holds no campaign; check the address")
    return StoreStatus(storage.uri, [_status(storage, name, limits or Limits(), now or utc_now()) for name in names])


def _status(storage: Storage, campaign: str, limits: Limits, now: datetime) -> CampaignStatus:
    status = CampaignStatus(campaign)
    try:
        _add_last_run(storage, status)
        if storage.get(layout.pointer(campaign)) is None:
            status.alerts["unpublished"] = "nothing is published"
        else:
            _add_published(status, open_published(storage, campaign), now)
    except AdgenError as error:
        status.alerts["unreadable"] = str(error)
    status.alerts |= dict(_over(status, limits))
    return status


def _add_published(status: CampaignStatus, published: PublishedRun, now: datetime) -> None:
    run, pointer, counts = published.run, published.pointer, published.run.counts
    status.run_id, status.generation, status.published_at = run.run_id, pointer.generation, pointer.published_at
    status.age_seconds = round((now - pointer.published_at).total_seconds(), 1)
    status.rows, status.generated, status.engine_seconds = counts.rows, counts.generated, counts.engine_seconds
    for name in ("ok", "rejected", "failed", "stale"):
        setattr(status, f"{name}_share", _share(getattr(counts, name), counts.rows))
    status.template_share = _share(counts.templates, counts.ok)
    status.plain_background_share = _share(counts.plain_backgrounds, counts.ok)
    status.cost = _cost(run)


def _add_last_run(storage: Storage, status: CampaignStatus) -> None:
    for run_id in reversed(run_ids(storage, layout.runs(status.campaign))):
        key = layout.run_document(status.campaign, run_id)
        if stored := storage.get(key):
            run = parse_document(RunDocument, stored.data, storage.address(key))
            status.last_run_id, status.last_run_state = run.run_id, run.state
            return


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _cost(run: RunDocument) -> float | None:
    price = (run.settings.get("forecast") or {}).get("price_an_hour")
    if not price or run.counts.engine_seconds is None:
        return None
    return round(run.counts.engine_seconds / 3600 * price, 4)


def _over(status: CampaignStatus, limits: Limits) -> Iterator[tuple[str, str]]:
    """Each limit that is broken; one that cannot be compared is no word of its own: `unreadable` or `unpublished` is."""
    hours = None if status.age_seconds is None else status.age_seconds / 3600
    if limits.max_age_hours is not None and hours is not None and hours > limits.max_age_hours:
        yield "age", f"was published {hours:.1f} hours ago, more than {limits.max_age_hours:g}"
    for name, share, least, most in (
        ("ok", status.ok_share, limits.min_ok, None),
        ("rejected", status.rejected_share, None, limits.max_rejected),
        ("templates", status.template_share, None, limits.max_fallback),
        ("plain_backgrounds", status.plain_background_share, None, limits.max_fallback),
    ):
        if share is not None and least is not None and share < least:
            yield name, f"{share:.1%} are {name}, less than {least:.1%}"
        if share is not None and most is not None and share > most:
            yield name, f"{share:.1%} are {name.replace('_', ' ')}, more than {most:.1%}"
    if status.last_run_state in _FAILED and status.last_run_id != status.run_id:
        yield "last_run", f"run {status.last_run_id} is {status.last_run_state}"


# -- OpenMetrics -----------------------------------------------------------------------------------------------

_METRICS = (
    ("adgen_published_timestamp_seconds", "published_at", "When the published run was published, in seconds since 1970."),
    ("adgen_published_age_seconds", "age_seconds", "How long ago that was when this was written."),
    ("adgen_published_generation", "generation", "Number of publishes of the campaign."),
    ("adgen_rows", "rows", "Creatives of the published run, of whatever status."),
    ("adgen_generated_rows", "generated", "Creatives that the published run made; it carried the others."),
    ("adgen_ok_ratio", "ok_share", "Share of rows that are ok."),
    ("adgen_rejected_ratio", "rejected_share", "Share of rows that a gate rejected."),
    ("adgen_failed_ratio", "failed_share", "Share of rows whose input was bad."),
    ("adgen_stale_ratio", "stale_share", "Share of rows that an earlier input made."),
    ("adgen_template_ratio", "template_share", "Share of ok rows with a title by template."),
    ("adgen_plain_background_ratio", "plain_background_share", "Share of ok rows with a plain background."),
    ("adgen_engine_seconds", "engine_seconds", "Engine time of the published run."),
    ("adgen_cost", "cost", "Cost of that time in the currency of forecast.price_an_hour."),
)
_UNITS = ("seconds", "ratio")


def openmetrics(status: StoreStatus) -> str:
    """The same in the text format of OpenMetrics 1.0, which Prometheus and its textfile collector read; gauges only."""
    lines = []
    for name, attribute, help_text in _METRICS:
        lines += _family(name, help_text, ((_labels(each), getattr(each, attribute)) for each in status.campaigns))
    published = ((_labels(each, run_id=each.run_id or ""), 1 if each.run_id else None) for each in status.campaigns)
    lines += _family("adgen_published_run", "The run that is published, by its label.", published)
    found = ((_labels(each, check=check), 1) for each in status.campaigns for check in each.alerts)
    lines += _family("adgen_alert", "A check that failed, by its label.", found)
    exits = ((_labels(each), each.exit_code) for each in status.campaigns)
    lines += _family("adgen_status", "0: well; 3: an alert; 4: what is published cannot be read.", exits)
    return "\n".join([*lines, "# EOF", ""])


def write_openmetrics(status: StoreStatus, path: Path) -> None:
    """In one step: who reads the file finds a whole one."""
    with whole_file(path) as file:
        file.write(openmetrics(status))


def _family(name: str, help_text: str, samples: Iterable[tuple[str, float | datetime | None]]) -> list[str]:
    unit = name.rpartition("_")[2]
    about = [f"# TYPE {name} gauge", *([f"# UNIT {name} {unit}"] if unit in _UNITS else []), f"# HELP {name} {help_text}"]
    return [*about, *(f"{name}{labels} {_number(value)!r}" for labels, value in samples if value is not None)]


def _number(value: float | datetime) -> float:
    return value.timestamp() if isinstance(value, datetime) else float(value)


def _labels(status: CampaignStatus, **more: str) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in {"campaign": status.campaign, **more}.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
