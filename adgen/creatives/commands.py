"""The commands of those who read a store or watch over it: of consumers and operators. Each imports what it needs."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from adgen.command_line import Dest, Json
from adgen.errors import ConsumerError, SettingsError, printable
from adgen.terminal import print_json, print_summary, print_table, text_of

if TYPE_CHECKING:
    from adgen.creatives.status import CampaignStatus
    from adgen.creatives.storage import S3Access, Storage

Store = Annotated[Positional[str], arg(metavar="STORE", help="root of the outputs: a folder, file:// or s3://")]
Campaign = Annotated[Positional[str], arg(metavar="CAMPAIGN", help="name of the campaign")]
Variants = Annotated[str, arg(metavar="N|all")]


@dataclasses.dataclass(frozen=True)
class S3Options:
    """How to reach an s3:// store; what is left out comes from the environment, as for other AWS tools."""

    endpoint_url: Annotated[str | None, arg(metavar="URL", help="address of an S3-compatible server")] = None
    region: Annotated[str | None, arg(metavar="NAME", help="region of the bucket")] = None

    def access(self) -> "S3Access":
        """The same as settings."""
        from adgen.config import validate_settings
        from adgen.creatives.storage import S3Access

        return validate_settings(S3Access, {"endpoint_url": self.endpoint_url, "region": self.region}, "command line")

    def open(self, store: str) -> "Storage":
        """The store."""
        from adgen.creatives.stores import open_storage

        return open_storage(store, self.access())


S3 = OmitArgPrefixes[S3Options]
FROM_ENVIRONMENT = S3Options()


def runs(store: Store, campaign: Campaign, s3: S3 = FROM_ENVIRONMENT, as_json: Json = False) -> int:
    """List the campaign's runs, newest first, and which one is published."""
    from adgen.creatives.publish import read_pointer
    from adgen.creatives.runs import list_runs

    storage = s3.open(store)
    pointer, _ = read_pointer(storage, campaign)
    published = pointer.run_id if pointer else None
    found = list_runs(storage, campaign)
    if as_json:
        hidden = {"settings", "manifest"}
        return print_json([run.model_dump(mode="json", exclude=hidden) | {"published": run.run_id == published} for run in found])
    if found:
        columns = ("run", "state", "ok", "rejected", "failed", "")
        print_table(columns, [_run_line(run, run.run_id == published) for run in found])
    else:
        print(f"campaign {campaign} has no runs in {storage.uri}")
    return 0


def show(
    store: Store,
    campaign: Campaign,
    pair: Annotated[Positional[str], arg(metavar="PAIR", help="pair_id, as in the manifest")],
    s3: S3 = FROM_ENVIRONMENT,
    as_json: Json = False,
) -> int:
    """Show the published creative of one pair and how it was made."""
    from adgen.creatives.reading import open_published

    storage = s3.open(store)
    published = open_published(storage, campaign)
    rows = published.find(pair)
    if not rows:
        raise ConsumerError(f"pair {pair} is not in run {published.run.run_id} of campaign {campaign}")
    if as_json:
        return print_json({"run_id": published.run.run_id, "rows": rows})
    for row in rows:
        shown = [(name, text_of(value)) for name, value in row.items() if value not in (None, [])]
        if row["uri"]:
            shown.append(("picture", storage.address(row["uri"])))
        print_table(("column", f"variant {row['variant']}, rank {row['rank']}, in run {published.run.run_id}"), shown)
    return 0


def rollback(
    store: Store,
    campaign: Campaign,
    run: Annotated[Positional[str], arg(metavar="RUN", help="an older COMPLETE run; `adgen runs` lists them")],
    s3: S3 = FROM_ENVIRONMENT,
    as_json: Json = False,
) -> int:
    """Publish an older run again."""
    from adgen.creatives.publish import rollback

    pointer = rollback(s3.open(store), campaign, run)
    if as_json:
        return print_json(pointer.model_dump(mode="json"))
    print(f"campaign {campaign}: run {pointer.run_id} is published, generation {pointer.generation}")
    return 0


def verify(
    store: Store,
    campaign: Campaign,
    variants: Annotated[Variants, arg(help="look at the objects of a pair's first N variants")] = "all",
    s3: S3 = FROM_ENVIRONMENT,
    as_json: Json = False,
) -> int:
    """Check that every object of the published run is there and right, and that the counts agree. Exit 1 if not.

    Of a folder that was pulled say how many variants it holds."""
    from adgen.creatives.verify import verify

    found = verify(s3.open(store), campaign, variants=number_of(variants))
    print_summary(found, as_json)
    return 1 if found.problems else 0


def pull(
    store: Store,
    campaign: Campaign,
    dest: Dest,
    since: Annotated[str | None, arg(metavar="RUN", help="a run whose creatives you have: fetch what it lacks")] = None,
    keep_withdrawn: Annotated[bool, arg(help="keep the files of creatives that are withdrawn or erased")] = False,
    variants: Annotated[Variants, arg(help="creatives of each pair, the best first")] = "1",
    s3: S3 = FROM_ENVIRONMENT,
    as_json: Json = False,
) -> int:
    """Mirror the published run: fetch new and changed creatives with their manifest, remove those that are withdrawn or erased.

    Goes on where it stopped. Exit 1 if objects are missing in the store: they are named, and the rest is pulled."""
    from adgen.creatives.pull import pull

    done = pull(s3.open(store), campaign, dest, since, keep_withdrawn=keep_withdrawn, variants=number_of(variants))
    print_summary(done, as_json)
    return 1 if done.problems else 0


def status(
    store: Store,
    max_age_hours: Annotated[float | None, arg(metavar="H", help="alert where what is published is older")] = None,
    min_ok: Annotated[float | None, arg(metavar="SHARE", help="alert where a smaller share of rows is ok, 0 to 1")] = None,
    max_rejected: Annotated[float | None, arg(metavar="SHARE", help="alert where a larger share of rows is rejected")] = None,
    max_fallback: Annotated[
        float | None,
        arg(metavar="SHARE", help="alert where a larger share of ok rows has a title by template, or a plain background"),
    ] = None,
    openmetrics: Annotated[Path | None, arg(metavar="FILE", help="write the same for Prometheus, in one step")] = None,
    s3: S3 = FROM_ENVIRONMENT,
    as_json: Json = False,
) -> int:
    """How every campaign of a store stands: published run, age, shares of ok, rejected and fallbacks, cost.

    Exit code 0: no alert. 1: the store cannot be read, or holds no campaign. 3: an alert: nothing published, a limit broken, or a
    newest run that FAILED or is HELD. 4: what is published cannot be read."""
    from adgen.creatives.status import Limits, store_status, write_openmetrics

    found = store_status(s3.open(store), Limits(max_age_hours, min_ok, max_rejected, max_fallback))
    if openmetrics is not None:
        write_openmetrics(found, openmetrics)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        columns = ("campaign", "age", "ok", "rejected", "templates", "plain", "cost", "published run")
        print_table(columns, [_status_line(each) for each in found.campaigns])
        for each in found.campaigns:
            for alert in each.alerts.values():
                print(printable(f"alert: {each.campaign}: {alert}"))
    return found.exit_code


def diff(
    store: Store,
    campaign: Campaign,
    before: Annotated[Positional[str], arg(metavar="RUN", help="the older run")],
    after: Annotated[Positional[str], arg(metavar="RUN", help="the newer run")],
    rows: Annotated[int, arg(metavar="N", help="changes to show one by one")] = 20,
    out: Annotated[Path | None, arg(metavar="FILE", help="write all changes, one JSON object a line")] = None,
    s3: S3 = FROM_ENVIRONMENT,
    as_json: Json = False,
) -> int:
    """Which creatives were added, changed or withdrawn between two runs, and why: product, history, model, settings, rules.

    The causes are in private/; who may not read it is told `unknown`, with the reason."""
    from adgen.creatives.diff import diff_runs

    found = diff_runs(s3.open(store), campaign, before, after, rows, out)
    if as_json:
        return print_json(dataclasses.asdict(found))
    print_table(("", ""), [(name, text_of(getattr(found, name))) for name in ("added", "changed", "withdrawn")])
    if found.why:
        print_table(("kind", "why", "creatives", ""), [_cause_line(*name.split(": "), count) for name, count in found.why.items()])
    if found.changes:
        print_table(("kind", "why", "pair", "product"), [_change_line(change) for change in found.changes])
    if found.note:
        print(printable(found.note))
    return 0


def token(
    action: Annotated[Positional[Literal["new"]], arg(help="new: add a token and print it, once")],
    file: Annotated[Positional[Path], arg(metavar="FILE", help="the service's file of tokens; made where it is not there")],
    name: Annotated[str, arg(metavar="NAME", help="whose it is; logs and limits name it")],
    scope: UseAppendAction[Annotated[tuple[Literal["read", "generate", "admin"], ...], arg(help="what it may do")]] = (),
    days: Annotated[int | None, arg(metavar="N", help="until it expires; default never")] = None,
    per_minute: Annotated[int | None, arg(metavar="N", help="requests a minute; default as the service is set")] = None,
    as_json: Json = False,
) -> int:
    """Make a bearer token for the service (jobs/serve.py). The file holds its hash only: the token is printed once."""
    from adgen.creatives.bearer_tokens import new_token

    for flag, number in (("--days", days), ("--per-minute", per_minute)):
        if number is not None and number < 1:
            raise SettingsError(f"{flag} {number}: is a number from 1 on")
    made = new_token(file, name, scope or ("read",), days, per_minute)
    if as_json:
        return print_json({"name": name, "token": made, "scopes": scope or ("read",)})
    print(made)
    return 0


def number_of(variants: str) -> int | None:
    """A number of variants as it was typed; None for all. SettingsError: it is neither."""
    if variants == "all":
        return None
    if not (variants.isascii() and variants.isdigit() and int(variants)):
        raise SettingsError(f"--variants {variants}: is a number from 1 on, or all")
    return int(variants)


def _run_line(run: Any, published: bool) -> tuple[str, ...]:
    counts = run.counts
    numbers = [text_of(number) for number in (counts.ok, counts.rejected, counts.failed)] if counts else [""] * 3
    mark = "published" if published else run.note or (f"driven by {run.owner}" if run.owner else "")
    return (run.run_id, run.state, *numbers, mark)


def _status_line(status: "CampaignStatus") -> tuple[str, ...]:
    shares = (status.ok_share, status.rejected_share, status.template_share, status.plain_background_share)
    age = "" if status.age_seconds is None else f"{status.age_seconds / 3600:,.1f} h"
    cost = "" if status.cost is None else f"{status.cost:,.2f}"
    return (status.campaign, age, *("" if share is None else f"{share:.1%}" for share in shares), cost, status.run_id or "none")


def _cause_line(kind: str, cause: str, count: int) -> tuple[str, ...]:
    from adgen.creatives.causes import CAUSES

    return kind, cause, text_of(count), CAUSES[cause]


def _change_line(change: dict[str, Any]) -> tuple[str, ...]:
    return change["kind"], ", ".join(change["why"]), f"{change['pair_id']} variant {change['variant']}", change["product_id"]


COMMANDS = {
    "runs": runs,
    "status": status,
    "show": show,
    "diff": diff,
    "rollback": rollback,
    "verify": verify,
    "pull": pull,
    "token": token,
}
