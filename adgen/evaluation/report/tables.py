"""What people read of `run`, `model`, `robustness` and `photographs`."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from adgen.evaluation.report.labels import UNCERTAIN
from adgen.evaluation.report.parts import effective
from adgen.evaluation.robustness.pbs_robustness import Robustness
from adgen.evaluation.robustness.photographs import Finding
from adgen.evaluation.scores import without_old_names


def print_robustness(console: Console, found: Robustness, left_out: dict[str, int]) -> None:
    """A row a change; below, what they must be seen against, and what was not measured."""
    title = f"PBS of a changed picture with its original, mean of {found.pictures}"
    table = Table("change", "by", "PBS", "19 of 20 above", "share of the margin", "nearer than others", title=title)
    for row in found.movements:
        share = "-" if row.share_of_margin is None else f"{row.share_of_margin:.1%}"
        table.add_row(row.change, row.level, f"{row.pbs:.3f}", f"{row.pbs_low:.3f}", share, f"{row.nearer_than_other:.1%}")
    console.print(table)
    console.print(f"the same product on another background: {found.other_background:.3f} (margin {1 - found.other_background:.3f})")
    if found.same_style is not None:
        console.print(f"the same product on another picture of the same style: {found.same_style:.3f}")
    _print_left_out(console, left_out)


def print_photographs(console: Console, findings: Sequence[Finding], record: dict[str, Any]) -> None:
    """A row a score and gallery; below, what was not measured. `record` is what `run_photographs` returns with them."""
    title = f"Finding the same kind of background among {record['photographs']} photographs of {record['kinds']} kinds"
    table = Table("score", "searched", "mean average precision", "95% interval", "chance", "queries", title=title)
    for row in findings:
        interval = f"{row.low:.3f} to {row.high:.3f}"
        queries = str(row.queries) + (f" ({row.without_match} without a match left out)" if row.without_match else "")
        table.add_row(row.score, row.gallery, f"{row.mean_average_precision:.3f}", interval, f"{row.chance:.3f}", queries)
    console.print(table)
    _print_left_out(console, record["left_out"])


def print_scores(console: Console, record: dict[str, Any]) -> None:
    """A row a score, then differences where there are any; below, what was not scored."""
    if found := record["parts"]["found"]:
        console.print(f"{found} of {found + record['parts']['scored']} parts were there from an earlier start")
    title = f"{record['rows']} creatives of {record['campaign']}"
    table = Table("score", "mean", "95% interval", "creatives", "users", "effective users", title=title)
    for name, each in without_old_names(record["scores"]).items():
        counts = str(each["rows"]), str(each["users"]), effective(each["effective_users"])
        table.add_row(name, f"{each['mean']:.4g}", _interval(each), *counts)
    for name, each in record["sets"].items():
        of = ", ".join(f"{count} {what}" for what, count in each["of"].items())
        table.add_row(name, f"{each['value']:.4g}", _interval(each), of, "", effective(each["effective_users"]))
    console.print(table)
    if against := record["against"]:
        _print_differences(console, against)
    _print_left_out(console, record["left_out"])
    for reason, names in record["uncertain"].items():
        console.print(f"{UNCERTAIN[reason]}: {', '.join(names)}")
    if references := record["reference_problems"]:
        console.print("references: " + ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in references.items()))


def _print_differences(console: Console, against: dict[str, Any]) -> None:
    head = ("score", "this", "that", "difference", "95% interval", "p", "pairs", "effective users")
    table = Table(*head, title=f"against {against['against']}")
    for name, each in without_old_names(against["differences"]).items():
        p_value = "-" if each["p_value"] is None else _p_value(each["p_value"]) + (" *" if each["significant"] else "")
        here, there = f"{each['here']:.4g}", f"{each['there']:.4g}"
        counts = str(each["rows"]), effective(each["effective_users"])
        table.add_row(name, here, there, f"{each['mean']:+.4g}", _interval(each), p_value, *counts)
    for name, each in against["sets"].items():
        here, there = each["here"], each["there"]
        table.add_row(name, f"{here:.4g}", f"{there:.4g}", f"{here - there:+.4g}", *"----")
    console.print(table)
    here, there = against["only_here"], against["only_there"]
    console.print(f"{against['pairs']} creatives of the same pairs; {here} only here, {there} only there")
    console.print("* significant at 5%, each score by itself: where nothing has changed, one of twenty has it by chance")
    if against["not_compared"]:
        names = ", ".join(against["not_compared"])
        console.print(f"not compared, because other networks scored there or the panel of other users differs: {names}")


def _p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _interval(each: dict[str, Any]) -> str:
    return "-" if each["low"] is None or each["high"] is None else f"{each['low']:.4g} to {each['high']:.4g}"


def _print_left_out(console: Console, left_out: dict[str, int]) -> None:
    if left_out:
        console.print("left out: " + ", ".join(f"{reason} {count}" for reason, count in left_out.items()))
