"""The `adgen` command: tables in, creatives out. For operators and consumers; `adgen COMMAND --help` says more.

What a command needs is imported inside it, so that a consumer's machine needs neither torch nor ray.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from adgen.command_line import Json
from adgen.creatives.commands import COMMANDS as STORE_COMMANDS
from adgen.creatives.commands import FROM_ENVIRONMENT, S3, Campaign, Store
from adgen.errors import AdgenError, printable
from adgen.generation.commands import COMMANDS as MODEL_COMMANDS
from adgen.shop.commands import COMMANDS as SHOP_COMMANDS
from adgen.terminal import plain_streams, print_json, print_summary

app = tyro.extras.SubcommandApp()
for _name, _command in (SHOP_COMMANDS | MODEL_COMMANDS | STORE_COMMANDS).items():
    app.command(name=_name)(_command)


@app.command(name="forget")
def forget(
    store: Store,
    user: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="ID", help="a user to forget")]] = (),
    users: Annotated[str | None, arg(metavar="FILE", help="file with one user id a line; - is stdin")] = None,
    campaign_key: UseAppendAction[Annotated[tuple[Path, ...], arg(metavar="FILE", help="key of the campaigns")]] = (),
    user_secret: Annotated[Path | None, arg(metavar="FILE", help="secret of user keys, to print those that consumers hold")] = None,
    s3: S3 = FROM_ENVIRONMENT,
    as_json: Json = False,
) -> int:
    """Remove users from every run of every campaign, for good. Exit 1 while anything of them may be left; do it again then."""
    from adgen.creatives.secrets import read_key
    from adgen.errors import SettingsError
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
    s3: S3 = FROM_ENVIRONMENT,
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
    s3: S3 = FROM_ENVIRONMENT,
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
    s3: S3 = FROM_ENVIRONMENT,
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


if __name__ == "__main__":
    sys.exit(main())
