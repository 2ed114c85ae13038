"""Two evaluations side by side: differences of the same pairs, with intervals and significance."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from adgen.errors import SettingsError
from adgen.evaluation.creative_scores import ROW_SCORES
from adgen.evaluation.statistics import RESAMPLES, Bootstrap, Difference
from adgen.evaluation.summary import ROWS


@dataclass
class Comparison:
    """This evaluation minus another, over the pairs that both have."""

    against: str
    pairs: int = 0
    only_here: int = 0
    only_there: int = 0
    differences: dict[str, Difference] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        differences = {name: each.as_dict() for name, each in self.differences.items()}
        counts = {name: getattr(self, name) for name in ("against", "pairs", "only_here", "only_there")}
        return counts | {"differences": differences}


def compare(here: Path, there: Path, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Joined by (pair_id, variant), out of memory where it must be. SettingsError: no evaluation there, or another version's."""
    for folder in (here, there):
        if not any((folder / ROWS).glob("*.parquet")):
            raise SettingsError(f"against: {folder}: no evaluation lies there ({ROWS}/*.parquet is missing)")
    bootstrap, found = Bootstrap(ROW_SCORES, resamples, seed), Comparison(str(there))
    with duckdb.connect(config={"memory_limit": "2GB", "temp_directory": f"{tempfile.gettempdir()}/adgen-duckdb"}) as base:
        for name, folder in (("here", here), ("there", there)):
            # A quote in a folder's name ends no string.
            files = str(folder / ROWS / "*.parquet").replace("'", "''")
            base.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{files}')")
        try:
            # Ordered, so that a user's rows come together and are drawn once.
            differences = ", ".join(f"here.{name} - there.{name} AS {name}" for name in ROW_SCORES)
            joined = f"SELECT here.user_key, {differences} FROM here JOIN there USING (pair_id, variant) ORDER BY here.user_key"
            for batch in base.sql(joined).to_arrow_reader(4096):
                found.pairs += batch.num_rows
                values = np.stack([batch[name].to_numpy(zero_copy_only=False) for name in ROW_SCORES], axis=1)
                bootstrap.add(batch["user_key"].to_pylist(), values)
        except duckdb.BinderException as error:
            raise SettingsError(f"against: {there}: another version of adgen wrote it: {error}") from None
        counts = [base.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0] for name in ("here", "there")]
    found.only_here, found.only_there = (total - found.pairs for total in counts)
    found.differences = bootstrap.differences()
    return found
