"""What the report says of scores, from the table of scores."""

from adgen.evaluation.scores import find_score

UNCERTAIN = {
    "one_row": "of one creative, so without an interval",
    "one_user": "of one user's creatives, so without an interval",
    "few_effective_users": "of fewer than four effective users (few, or most creatives are of a few), so without an interval",
    "no_variance": "the same everywhere, so without an interval",
    "too_few_pictures": "not reported, since there are fewer than two pictures on a side",
}
"""What is said of scores by `Summary.uncertain`."""


def label(name: str) -> str:
    """For people; what the table does not have is called by its name. A distance by another network than Inception says which."""
    score = find_score(name)
    if score is None:
        return name.replace("_", " ")
    network = name.removeprefix(score.name).strip("_") if name.startswith(score.name) else ""
    return score.label + (f" ({network})" if network else "")


def meaning(name: str) -> str:
    """One line, or nothing."""
    score = find_score(name)
    return score.meaning if score else ""


def verdict(name: str, difference: float) -> str:
    """`better` or `worse` for a difference that is significant; nothing for a score that is neither good nor bad."""
    score = find_score(name)
    if score is None or score.better == "neither":
        return ""
    return "better" if (difference > 0) == (score.better == "higher") else "worse"
