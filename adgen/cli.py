"""The `adgen` command: tables in, creatives out. For operators and consumers; `adgen COMMAND --help` says more.

What a command needs is imported inside it, so that a consumer's machine needs neither torch nor ray.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from adgen.command_line import Dest, Json
from adgen.errors import AdgenError, printable
from adgen.generation.commands import COMMANDS as MODEL_COMMANDS
from adgen.terminal import plain_streams, print_json, print_summary, print_table, text_of

if TYPE_CHECKING:
    from adgen.creatives.storage import S3Access, Storage

Store = Annotated[Positional[str], arg(metavar="STORE", help="root of the outputs: a folder, file:// or s3://")]
Campaign = Annotated[Positional[str], arg(metavar="CAMPAIGN", help="name of the campaign")]
Variants = Annotated[str, arg(metavar="N|all")]

app = tyro.extras.SubcommandApp()
for _name, _command in MODEL_COMMANDS.items():
    app.command(name=_name)(_command)


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


@app.command(name="import-pad1m")
def import_pad1m(
    file: Annotated[Positional[Path], arg(metavar="FILE", help="the JSON file")],
    dest: Dest,
    as_json: Json = False,
) -> int:
    """Turn the public PAd1M JSON into input tables."""
    from adgen.shop.inputs.pad1m import import_pad1m

    return print_summary(import_pad1m(file, dest), as_json)


@app.command(name="synth")
def synth(
    dest: Dest,
    users: Annotated[int, arg(metavar="N", help="number of users")] = 100,
    products: Annotated[int, arg(metavar="N", help="number of products")] = 48,
    pairs: Annotated[int | None, arg(metavar="N", help="number of pairs; default four a user")] = None,
    seed: Annotated[int, arg(metavar="N", help="same seed, same bytes")] = 0,
    as_json: Json = False,
) -> int:
    """Draw a synthetic shop: products, users with a taste, histories, reference creatives."""
    from adgen.shop.synthetic.synth import synthesize

    return print_summary(synthesize(dest, num_users=users, num_products=products, num_pairs=pairs, seed=seed), as_json)


@app.command(name="runs")
def runs(store: Store, campaign: Campaign, s3: S3 = S3Options(), as_json: Json = False) -> int:
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


@app.command(name="show")
def show(
    store: Store,
    campaign: Campaign,
    pair: Annotated[Positional[str], arg(metavar="PAIR", help="pair_id, as in the manifest")],
    s3: S3 = S3Options(),
    as_json: Json = False,
) -> int:
    """Show the published creative of one pair and how it was made."""
    from adgen.creatives.reading import open_published
    from adgen.errors import ConsumerError

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


@app.command(name="rollback")
def rollback(
    store: Store,
    campaign: Campaign,
    run: Annotated[Positional[str], arg(metavar="RUN", help="an older COMPLETE run; `adgen runs` lists them")],
    s3: S3 = S3Options(),
    as_json: Json = False,
) -> int:
    """Publish an older run again."""
    from adgen.creatives.publish import rollback

    pointer = rollback(s3.open(store), campaign, run)
    if as_json:
        return print_json(pointer.model_dump(mode="json"))
    print(f"campaign {campaign}: run {pointer.run_id} is published, generation {pointer.generation}")
    return 0


@app.command(name="verify")
def verify(
    store: Store,
    campaign: Campaign,
    variants: Annotated[Variants, arg(help="look at the objects of a pair's first N variants")] = "all",
    s3: S3 = S3Options(),
    as_json: Json = False,
) -> int:
    """Check that every object of the published run is there and right, and that the counts agree. Exit 1 if not.

    Of a folder that was pulled say how many variants it holds."""
    from adgen.creatives.verify import verify

    found = verify(s3.open(store), campaign, variants=number_of(variants))
    print_summary(found, as_json)
    return 1 if found.problems else 0


@app.command(name="pull")
def pull(
    store: Store,
    campaign: Campaign,
    dest: Dest,
    since: Annotated[str | None, arg(metavar="RUN", help="a run whose creatives you have: fetch what it lacks")] = None,
    keep_withdrawn: Annotated[bool, arg(help="keep the files of creatives that are withdrawn or erased")] = False,
    variants: Annotated[Variants, arg(help="creatives of each pair, the best first")] = "1",
    s3: S3 = S3Options(),
    as_json: Json = False,
) -> int:
    """Mirror the published run: fetch new and changed creatives with their manifest, remove those that are withdrawn or erased.

    Goes on where it stopped. Exit 1 if objects are missing in the store: they are named, and the rest is pulled."""
    from adgen.creatives.pull import pull

    done = pull(s3.open(store), campaign, dest, since, keep_withdrawn=keep_withdrawn, variants=number_of(variants))
    print_summary(done, as_json)
    return 1 if done.problems else 0


@app.command(name="forget")
def forget(
    store: Store,
    user: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="ID", help="a user to forget")]] = (),
    users: Annotated[str | None, arg(metavar="FILE", help="file with one user id a line; - is stdin")] = None,
    campaign_key: UseAppendAction[Annotated[tuple[Path, ...], arg(metavar="FILE", help="key of the campaigns")]] = (),
    user_secret: Annotated[Path | None, arg(metavar="FILE", help="secret of user keys, to print those that consumers hold")] = None,
    s3: S3 = S3Options(),
    as_json: Json = False,
) -> int:
    """Remove users from every run of every campaign, for good. Exit 1 while anything of them may be left; do it again then."""
    from adgen.errors import SettingsError
    from adgen.shop.key_files import read_key
    from adgen.store_commands import campaign_keys, forget_users, read_users

    if bool(user) == bool(users):
        raise SettingsError("say whom to forget: either --user ID or --users FILE")
    storage = s3.open(store)
    keys, secret = campaign_keys(campaign_key, storage), read_key(user_secret, "--user-secret") if user_secret else None
    done = forget_users(storage, user or read_users(users), keys, secret)
    print_summary(done, as_json)
    return 0 if done.complete else 1


@app.command(name="clean-up")
def clean_up(
    store: Store,
    dry_run: Annotated[bool, arg(help="only say what would be removed")] = False,
    keep_runs: Annotated[int, arg(metavar="N", help="newest runs of each campaign that stay")] = 7,
    s3: S3 = S3Options(),
    as_json: Json = False,
) -> int:
    """Remove old runs, and objects and catalogs that no run names any more: an object goes at the second clean-up that finds it."""
    from adgen.store_commands import clean_store

    return print_summary(clean_store(s3.open(store), dry_run, keep_runs), as_json)


@app.command(name="replay")
def replay(
    store: Store,
    campaign: Campaign,
    pair: Annotated[Positional[str], arg(metavar="PAIR", help="pair_id, as in the manifest")],
    variant: Annotated[int | None, arg(metavar="V", help="which of its variants; default the one that ranks first")] = None,
    model: Annotated[Path | None, arg(metavar="DIR", help="its model directory; default where it was when it was made")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], arg(help="where to make it")] = "auto",
    s3: S3 = S3Options(),
    as_json: Json = False,
) -> int:
    """Make a published creative again from its lineage and compare; nothing in the store changes.

    Exit code 0: equal_bytes, the same files. 3: equal_tokens, same title and image tokens, other files. 4:
    different_device, other tokens on another device or other versions. 5: unequal, other tokens on the same: a fault.
    6: input_gone, what it was made from is no more what it was.
    """
    from adgen.on_ray.refresh.replay import EXIT_CODES, replay

    with s3.access().exported():  # the inputs' pictures are reached like the store
        done = replay(s3.open(store), campaign, pair, variant, model, device, s3.access())
    if as_json:
        print_json(dataclasses.asdict(done))
    else:
        print(printable(f"{done.outcome.replace('_', ' ')}{': ' if done.detail else ''}{done.detail}"))
    return EXIT_CODES[done.outcome]


@app.command(name="report")
def report(
    store: Store,
    campaign: Campaign,
    out: Annotated[Path, arg(metavar="FILE", help="where to write it; it shows histories: keep it private")] = Path("report.html"),
    inputs: Annotated[str | None, arg(metavar="URI", help="the input tables, for product and history pictures")] = None,
    s3: S3 = S3Options(),
) -> int:
    """Write the contact sheet of the published run: one HTML file that opens from disk."""
    from adgen.finishing.report import write_report

    with s3.access().exported():  # the inputs' pictures are reached like the store
        count = write_report(store, campaign, out, inputs=inputs, access=s3.access())
    print(f"{out}: {count} creatives of campaign {campaign}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code: 0, 1 after `adgen: why` on stderr, 2 for a wrong command line, above 2 as the
    command says."""
    try:
        with plain_streams():
            return app.cli(
                args=arguments,
                prog="adgen",
                description="One personalized advertising creative per (user, product) pair, in object storage.",
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except BrokenPipeError:  # `adgen ... | head` has seen enough
        return 1
    except (AdgenError, OSError, UnicodeError) as error:
        print(f"adgen: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"adgen: this command needs {error.name}; install adgen[job]", file=sys.stderr)
        return 1


def number_of(variants: str) -> int | None:
    """A number of variants as it was typed; None for all. SettingsError: it is neither."""
    from adgen.errors import SettingsError

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


if __name__ == "__main__":
    sys.exit(main())
