"""Imports of a feed and of a click log, and pairs made of them, take memory that does not grow with them."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 2**20
RUN = """
import resource, sys
from adgen.cli import main
assert main([*sys.argv[1:], "--json"]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_bytes(*arguments: str) -> int:
    """Of a process of its own that runs the command."""
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def write_clicks(path: Path, count: int) -> None:
    draw = random.Random(1)
    with path.open("w") as file:
        file.write("timestamp,user_id,event,product_id\n")
        for number in range(count):
            file.write(f"{1_793_534_400 + number},u{draw.randrange(count // 10)},view,p{draw.randrange(50_000)}\n")


def write_feed(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.write("id\ttitle\tdescription\timage_link\tprice\n")
        for number in range(count):
            words = f"Plain red steel mug {number}"
            file.write(
                f"p{number}\t{words}\t{words} keeps tea warm. It holds for years.\thttps://cdn.example/{number}.jpg\t5 EUR\n"
            )


@pytest.mark.parametrize(
    ("command", "write", "count"), [("import-clicks", write_clicks, 1_000_000), ("import-feed", write_feed, 200_000)]
)
def test_five_times_the_rows_take_the_same_memory(tmp_path, command, write, count):
    peaks = []
    for rows in (count // 5, count):
        write(tmp_path / f"{rows}.csv", rows)
        peaks.append(peak_bytes(command, str(tmp_path / f"{rows}.csv"), str(tmp_path / "shop")))
    assert peaks[1] < peaks[0] + 150 * MIB
    assert peaks[1] < 800 * MIB


@pytest.mark.parametrize("products", [["--top", "5"], ["--products", "campaign.txt"]])
def test_pairs_of_five_times_the_users_take_the_same_memory(tmp_path, products):
    write_feed(tmp_path / "feed.tsv", 20_000)
    campaign = tmp_path / "campaign.txt"
    campaign.write_text("".join(f"p{number}\n" for number in range(10)))
    words = [str(campaign) if word == campaign.name else word for word in products]
    peaks = []
    for clicks in (200_000, 1_000_000):
        shop = str(tmp_path / f"shop-{clicks}")
        write_clicks(tmp_path / f"{clicks}.csv", clicks)
        peak_bytes("import-feed", str(tmp_path / "feed.tsv"), shop)
        peak_bytes("import-clicks", str(tmp_path / f"{clicks}.csv"), shop)
        peaks.append(peak_bytes("make-pairs", shop, *words))
    assert peaks[1] < peaks[0] + 150 * MIB
    assert peaks[1] < 800 * MIB
