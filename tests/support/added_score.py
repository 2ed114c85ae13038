"""A process whose table of scores has two more entries, before anything reads the table: STORE SHOP OUT.

Evaluates the store's run twice, the second time against the first.
"""

import math
import sys
from pathlib import Path

import numpy as np

from adgen.evaluation import scores
from adgen.evaluation.scores import Score


def title_letters(facts) -> float | None:
    return float(sum(map(str.isalpha, facts.title))) or None


def brightness(shown) -> float:
    return float(np.asarray(shown.picture).mean() / 255)


ADDED = [
    Score("title_letters", "title", "letters in the title", "how many", (0, math.inf), "lower", (), title_letters),
    Score("brightness", "picture", "brightness of the picture", "0 to 1", (0, 1), "neither", (), brightness, True, 1),
]


def main(store: str, shop: str, out: str) -> None:
    scores.SCORES += ADDED
    from adgen.evaluation.scoring import networks
    from adgen.on_ray.evaluation import job
    from support.evaluations import run_settings, score_here
    from support.progress import Silent

    networks.shipped_encoder = networks.shipped_model = lambda: None
    job.score = score_here
    for name, against in (("first", None), ("second", Path(out) / "first")):
        job.evaluate_run(run_settings(Path(store), Path(shop), Path(out) / name, against=against), Silent())


if __name__ == "__main__":
    main(*sys.argv[1:])
