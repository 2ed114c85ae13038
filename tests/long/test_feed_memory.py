"""Imports of a feed and of a click log, and pairs made of them, take memory that does not grow with them.

As a program it measures: `python tests/long/test_feed_memory.py 200000 1000000 10000000` prints for each number of rows the peak of
each import and of make-pairs, and its CPU seconds.
"""

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adgen import records

MIB = 2**20
RUN = """
import resource, sys
from adgen.cli import main
assert main([*sys.argv[1:], "--json"]) == 0
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_maxrss * 1024, used.ru_utime + used.ru_stime)
"""
Rows = Iterator[dict[str, str | int]]


def cost(*arguments: str) -> tuple[int, float]:
    """(peak bytes, CPU seconds) of a process of its own that runs the command."""
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True)
    peak, seconds = done.stdout.splitlines()[-1].split()
    return int(peak), float(seconds)


def clicks(count: int) -> Rows:
    """Ten a user."""
    draw = random.Random(1)
    for number in range(count):
        user, product = draw.randrange(count // 10), draw.randrange(50_000)
        yield {"timestamp": 1_793_534_400 + number, "user_id": f"u{user}", "event": "view", "product_id": f"p{product}"}


def clicks_of_one(count: int) -> Rows:
    """All of them of somebody who never logged in."""
    return ({**click, "user_id": "anonymous"} for click in clicks(count))


def products(count: int) -> Rows:
    """Whose pictures are links."""
    for number in range(count):
        words = f"Plain red steel mug {number}"
        text = f"{words} keeps tea warm. It holds for years."
        yield {
            "id": f"p{number}",
            "title": words,
            "description": text,
            "image_link": f"https://cdn.example/{number}.jpg",
            "price": "5 EUR",
        }


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w") as file:
        for number, row in enumerate(rows):
            if number == 0:
                file.write("\t".join(row) + "\n")
            file.write("\t".join(map(str, row.values())) + "\n")


def write_json_lines(path: Path, rows: Rows) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_parquet(path: Path, rows: Rows, rows_at_once: int = 50_000) -> None:
    writer, waiting = None, []
    for row in rows:
        waiting.append(row)
        if len(waiting) == rows_at_once:
            table = pa.Table.from_pylist(waiting)
            writer, waiting = writer or pq.ParquetWriter(path, table.schema), []
            writer.write_table(table)
    assert writer, f"fewer than {rows_at_once} rows"
    if waiting:
        writer.write_table(pa.Table.from_pylist(waiting))
    writer.close()


WRITERS: dict[str, Callable[[Path, Rows], None]] = {"csv": write_csv, "jsonl": write_json_lines, "parquet": write_parquet}
IMPORTS: dict[str, tuple[str, Callable[[int], Rows]]] = {
    "products": ("import-feed", products),
    "clicks": ("import-clicks", clicks),
    "clicks of one user": ("import-clicks", clicks_of_one),
}


def cost_of_import(folder: Path, what: str, form: str, count: int) -> tuple[int, float]:
    command, rows = IMPORTS[what]
    WRITERS[form](folder / f"feed.{form}", rows(count))
    return cost(command, str(folder / f"feed.{form}"), str(folder / "shop"))


def cost_of_pairs(folder: Path, users: int, *words: str) -> tuple[int, float]:
    """Of make-pairs with 20,000 products and users of three clicks each; the tables are made without an import."""
    shop = folder / "shop"
    shop.mkdir(exist_ok=True)
    some = [
        {"product_id": row["id"], "title": row["title"], "selling_points": [], "image": row["image_link"], "scale": 0.6}
        for row in products(20_000)
    ]
    pq.write_table(pa.Table.from_pylist(some, records.PRODUCTS), shop / "products.parquet")
    with pq.ParquetWriter(shop / "histories.parquet", records.HISTORIES) as writer:
        for start in range(0, users, 50_000):
            rows = [
                {"user_id": f"u{user}", "clicks": [{"product_id": f"p{user * step % 20_011}"} for step in (3, 7, 11)]}
                for user in range(start, min(start + 50_000, users))
            ]
            writer.write_table(pa.Table.from_pylist(rows, records.HISTORIES))
    (folder / "campaign.txt").write_text("".join(f"p{number}\n" for number in range(1_000)))
    return cost("make-pairs", str(shop), *(str(folder / word) if word == "campaign.txt" else word for word in words))


def assert_flat(peaks: list[int]) -> None:
    assert peaks[1] < peaks[0] + 150 * MIB
    assert peaks[1] < 800 * MIB


@pytest.mark.parametrize(
    ("what", "form", "count"),
    [
        *(("clicks", "csv", 1_500_000), ("clicks of one user", "parquet", 1_500_000)),
        *(("products", "csv", 250_000), ("products", "jsonl", 250_000), ("products", "parquet", 250_000)),
    ],
)
def test_five_times_the_rows_take_the_same_memory(tmp_path, what, form, count):
    assert_flat([cost_of_import(tmp_path, what, form, rows)[0] for rows in (count // 5, count)])


@pytest.mark.parametrize("words", [("--top", "5", "--products", "campaign.txt"), ("--top", "1"), ("--products", "campaign.txt")])
def test_pairs_of_five_times_the_users_take_the_same_memory(tmp_path, words):
    users = 20_000 if "--top" not in words else 200_000
    assert_flat([cost_of_pairs(tmp_path, count, *words)[0] for count in (users // 5, users)])


def main(counts: list[int]) -> None:
    """Print what each command takes for each number of rows, or of users."""
    jobs: list[tuple[str, Callable[[Path, int], tuple[int, float]]]] = [
        (f"{what}, {form}", lambda folder, count, what=what, form=form: cost_of_import(folder, what, form, count))
        for what in IMPORTS
        for form in WRITERS
    ]
    jobs.append(("pairs", lambda folder, users: cost_of_pairs(folder, users, "--top", "2", "--products", "campaign.txt")))
    for name, job in jobs:
        for count in counts:
            with tempfile.TemporaryDirectory(prefix="adgen-feed-memory-") as folder:
                peak, seconds = job(Path(folder), count)
            print(f"{name}, {count:,}: {peak // MIB} MiB, {seconds:.1f} CPU seconds", flush=True)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
