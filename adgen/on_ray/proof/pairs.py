"""What a proof is about: pairs with a reference creative, their users' histories, and whom each user is compared with.

The chosen pairs and histories are written as tables of their own, so that catalog, plan and draw are the refresh's and
no larger than they need be. Users with a controlled history are rows of that table like any other.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adgen.errors import InputError, SettingsError
from adgen.records import HISTORIES, PAIRS, unit_interval
from adgen.shop.inputs.tables import InputFile, Inputs, InputTable, open_inputs
from adgen.shop.synthetic.controlled_histories import controlled_clicks
from adgen.shop.synthetic.synth import synthesize
from adgen.shop.synthetic.truth import TRUTH_FILE, Truth, read_truth

TABLES = ("products", "histories", "references")
LEAST_PRODUCTS = 400


@dataclass(frozen=True)
class Reference:
    """The creative that a user would like of a product."""

    user: str
    product: str
    image: str | None
    titles: tuple[str, ...]


@dataclass(frozen=True)
class ProofPairs:
    """Pairs to make, in the order of `references`."""

    inputs: Inputs
    """products as they were; pairs and histories of the proof alone."""
    references: list[Reference]
    """One a pair."""
    other_users: dict[str, str]
    """Of each user one of the other users; where the truth is known, one who shares no favourite style."""
    truth: Truth | None
    noise: tuple[float, ...] = ()
    """Shares of stray clicks that every user has a controlled history of."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""


def draw_held_out_shop(folder: Path, seed: int, pairs: int, side: int, workers: int, **others: Any) -> str:
    """A shop of the evaluation split, one pair and reference a user, unless it lies there; its folder. others: as `synthesize`
    takes them. SettingsError: another shop lies there."""
    counts = {"num_users": pairs, "num_products": max(LEAST_PRODUCTS, pairs), "num_pairs": pairs, "num_references": pairs}
    if (folder / "references.parquet").exists():
        _check_same(folder, {"seed": seed, "split": "eval", "side": side} | counts)
        return str(folder)
    synthesize(folder, **counts, seed=seed, split="eval", picture_side=side, workers=workers, **others)
    return str(folder)


def _check_same(folder: Path, wanted: dict[str, Any]) -> None:
    if not (folder / TRUTH_FILE).is_file():
        raise SettingsError(f"shop: {folder}: {TRUTH_FILE} is not there, so styles cannot be measured: name an empty folder")
    try:
        found = json.loads((folder / "shop.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"shop: {folder}/shop.json: {error}; name an empty folder") from None
    for name, value in wanted.items():
        if found.get(name) != value:
            raise SettingsError(
                f"shop: {folder}/shop.json: {name} is {found.get(name)!r}, this proof draws {value!r}: name an empty folder, "
                "or measure on that shop with --inputs"
            )


def choose_pairs(uri: str, count: int, noise: tuple[float, ...], scratch: Path) -> ProofPairs:
    """At most `count` pairs of the tables at `uri`, each user's first before anyone's second. InputError: fewer than two
    users with a reference."""
    inputs = open_inputs(uri, TABLES)
    references = _first_of_each(inputs, count)
    users = list(dict.fromkeys(reference.user for reference in references))
    if len(users) < 2:
        raise InputError(
            f"{uri}: table 'references' gives {len(users)} users with titles; comparing with another user takes two at least"
        )
    truth = read_truth(uri)
    histories = _histories_of(inputs, users)
    controlled, notes = _controlled(inputs, references, truth, noise) if truth else ({}, [])
    histories = pa.concat_tables([histories, *controlled.values()])
    rows = [{"user_id": each.user, "product_id": each.product} for each in references]
    pairs = pa.Table.from_pylist(rows, PAIRS)
    chosen = {"pairs": _written(pairs, scratch, "pairs"), "histories": _written(histories, scratch, "histories")}
    held = dataclasses.replace(inputs, tables={"products": inputs["products"], **chosen})
    return ProofPairs(held, references, _panel(users, truth), truth, tuple(controlled), tuple(notes))


def with_newest_clicks(pairs: ProofPairs, newest: dict[str, tuple[str, int]], scratch: Path) -> ProofPairs:
    """The pairs with more histories: of each new user id, so many of a user's newest clicks."""
    if not newest:
        return pairs
    histories = pairs.inputs["histories"].reader().read_all()
    clicks = dict(zip(histories["user_id"].to_pylist(), histories["clicks"].to_pylist(), strict=True))
    rows = [{"user_id": new, "clicks": (clicks[user] or [])[-count:] if count else []} for new, (user, count) in newest.items()]
    more = pa.Table.from_pylist(rows, _nullable(HISTORIES)).cast(histories.schema)
    table = _written(pa.concat_tables([histories, more]), scratch, "more-histories")
    held = dataclasses.replace(pairs.inputs, tables={**pairs.inputs.tables, "histories": table})
    return dataclasses.replace(pairs, inputs=held)


def controlled_user(user: str, share: float) -> str:
    """The id under which a user's controlled history stands in the table."""
    return f"{user} with {share:g} stray"


def _first_of_each(inputs: Inputs, count: int) -> list[Reference]:
    turns: dict[str, int] = {}
    found: dict[tuple[str, str], tuple[int, int, Reference]] = {}
    rows = (row for batch in inputs["references"].batches() for row in batch.to_pylist())
    for number, row in enumerate(rows):
        titles = tuple(title for title in row["titles"] or () if title)
        user, product = row["user_id"], row["product_id"]
        if user is None or product is None or not titles or (user, product) in found:
            continue
        turn = turns[user] = turns.get(user, -1) + 1
        found[user, product] = (turn, number, Reference(user, product, row["image"], titles))
    return [reference for *_, reference in sorted(found.values(), key=lambda each: each[:2])[:count]]


def _histories_of(inputs: Inputs, users: list[str]) -> pa.Table:
    wanted = pa.array(users)
    batches = [batch.filter(pc.is_in(batch["user_id"], value_set=wanted)) for batch in inputs["histories"].batches()]
    return pa.Table.from_batches(batches, inputs["histories"].schema).cast(_nullable(HISTORIES))


def _controlled(
    inputs: Inputs, references: list[Reference], truth: Truth, noise: tuple[float, ...]
) -> tuple[dict[float, pa.Table], list[str]]:
    """For each share of stray clicks a history of each user, without the user's targets and their namesakes; and notes on
    the shares that the shop has too few products for."""
    titles: dict[str, str | None] = {}
    for batch in inputs["products"].batches(["product_id", "title"]):
        titles |= dict(zip(batch["product_id"].to_pylist(), batch["title"].to_pylist(), strict=True))
    named: dict[str | None, set[str]] = {}
    for product, title in titles.items():
        named.setdefault(title, set()).add(product)
    avoid: dict[str, set[str]] = {}
    for each in references:
        avoid.setdefault(each.user, set()).update({each.product}, named.get(titles.get(each.product), ()))
    tables, notes = {}, []
    for share in noise:
        try:
            tables[share] = _controlled_at(share, avoid, truth)
        except InputError as error:
            notes.append(f"left out: {error}")
    return tables, notes


def _controlled_at(share: float, avoid: dict[str, set[str]], truth: Truth) -> pa.Table:
    rows = []
    for user, targets in avoid.items():
        clicks = controlled_clicks(user, truth.favourites[user], truth.styles, share, targets)
        opened = [{"product_id": product, "clicked_at": None} for product in clicks]
        rows.append({"user_id": controlled_user(user, share), "clicks": opened})
    return pa.Table.from_pylist(rows, _nullable(HISTORIES))


def _panel(users: list[str], truth: Truth | None) -> dict[str, str]:
    """Somebody else for each user, by a keyed draw."""
    other_users = {}
    for user in users:
        start = int(unit_interval("stranger", user) * len(users))
        for turn in range(len(users)):
            other = users[(start + turn) % len(users)]
            if other != user and (truth is None or truth.have_no_common_style(user, other)):
                other_users[user] = other
                break
        else:
            raise InputError("a user shares a favourite style with every other user: take more pairs")
    return other_users


def _written(rows: pa.Table, folder: Path, name: str) -> InputTable:
    path = folder / f"{name}.parquet"
    pq.write_table(rows, path)
    return InputTable(name, rows.schema, (InputFile(str(path), "proof", rows.num_rows),))


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])
