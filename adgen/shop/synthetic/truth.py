"""The synthetic shop's hidden truth: what the proof compares creatives with. Nothing that makes creatives may read it."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from adgen.errors import InputError
from adgen.shop.inputs.locations import is_s3, local_path

TRUTH_FILE = "styles.parquet"


@dataclass(frozen=True)
class Truth:
    """Styles by id."""

    favourites: dict[str, tuple[str, ...]]
    """Of each user: one style, or two."""
    styles: dict[str, str]
    """Of each product's picture."""

    def have_no_common_style(self, user: str, other: str) -> bool:
        """Whether two users share no favourite style."""
        return not set(self.favourites[user]) & set(self.favourites[other])


def read_truth(inputs: str) -> Truth | None:
    """The truth that lies next to the tables in the folder `inputs`; None where there is none, as for real shops."""
    if is_s3(inputs) or not (path := Path(local_path(inputs)) / TRUTH_FILE).is_file():
        return None
    rows = pq.read_table(path, columns=["entity", "id", "styles"]).to_pylist()
    if not all(row["styles"] for row in rows):
        raise InputError(f"{path}: a row without styles: it is not the file that `adgen synth` writes")
    return Truth(
        {row["id"]: tuple(row["styles"]) for row in rows if row["entity"] == "user"},
        {row["id"]: row["styles"][0] for row in rows if row["entity"] == "product"},
    )
