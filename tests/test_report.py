"""adgen/evaluation/report/: labels and charts say what they show, and no text of a title is markup."""

from xml.etree import ElementTree

import numpy as np
import pytest

from adgen.evaluation.report.charts import WIDTH, groups_svg, histogram_svg, interval_svg
from adgen.evaluation.report.labels import label, meaning, verdict
from adgen.evaluation.results.summary import Histogram, by_length, history_group
from adgen.evaluation.scoring.creatives import CORPUS_BLEU, ROW_SCORES
from adgen.evaluation.statistics import Difference, Estimate

ROWS = {"rows": 9, "users": 3}


def drawn(svg: str) -> ElementTree.Element:
    """Parsed, and everything within its frame."""
    tree = ElementTree.fromstring(svg)
    for each in tree.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(each.get(name, 0)) <= WIDTH
    return tree


@pytest.mark.parametrize("name", [*ROW_SCORES, CORPUS_BLEU, "seed_diversity", "user_diversity", "fid", "kid_dinov2"])
def test_every_score_has_a_label_and_a_meaning(name):
    assert label(name) != name
    assert meaning(name)


def test_distances_of_other_networks_say_whose_they_are():
    assert label("frechet_dinov2") == "Fréchet distance (dinov2)"
    assert label("kid_std_clip") == "KID's deviation (clip)"
    assert label("failed_engine") == "failed engine"


def test_which_way_is_better():
    assert [verdict(name, 0.1) for name in ("bleu", "copied", "width")] == ["better", "worse", ""]
    assert [verdict(name, -0.1) for name in ("bleu", "copied", "pbs_other_user_history")] == ["worse", "better", ""]
    assert verdict("history_correlation", 0.1) == "", "whoever follows a style comes nearer to what was clicked"


def test_groups_are_drawn_with_their_intervals_on_one_scale():
    groups = {"a": Estimate(0.2, 0.1, 0.3, **ROWS), "<b> & c, a very long name": Estimate(0.8, None, None, **ROWS)}
    tree = drawn(groups_svg("score", groups, Estimate(0.5, 0.4, 0.6, **ROWS)))
    circles = [float(each.get("cx")) for each in tree.iter("circle")]
    [mean] = [float(each.get("x1")) for each in tree.iter("line") if each.get("class") == "mean"]
    assert circles[0] < mean < circles[1]
    assert mean == pytest.approx(sum(circles) / 2, abs=0.1)
    ranges = [float(each.get("x2")) - float(each.get("x1")) for each in tree.iter("line") if each.get("class") == "range"]
    assert ranges[0] > 0 == ranges[1]


def test_equal_values_are_drawn_too():
    same = Estimate(1.0, None, None, **ROWS)
    drawn(groups_svg("score", {"a": same, "b": same}, same))
    drawn(histogram_svg("score", Histogram(1.0, 1.0, np.array([0, 9])), same))
    drawn(interval_svg(Difference(0.0, None, None, 1.0, **ROWS), 0.0))


def test_histories_are_in_the_order_of_their_lengths():
    groups = {history_group(length): length for length in (None, 12, 0, 5, 2, 9)}
    assert list(by_length(groups).values()) == [0, 2, 5, 9, 12, None]
