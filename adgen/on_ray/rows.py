"""A stage's RunError on its way to the driver, as a row: Ray Data wraps whatever a stage raises, and the driver could not
distinguish a full disk from a fault of ours."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from adgen import errors
from adgen.errors import RunError

Row = dict[str, Any]


def as_row_error(call: Callable[[Any, Row], Row]) -> Callable[[Any, Row], Row]:
    """A stage's `__call__` whose RunError becomes a row, which the stages after it pass on. A constructor has no such
    way, so a stage does nothing in it that may fail."""

    @wraps(call)
    def call_or_row_error(stage: Any, row: Row) -> Row:
        if "error" in row:
            return row
        try:
            return call(stage, row)
        except RunError as error:
            kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
            return {"index": row["index"], "error": kind.__name__, "message": str(error)}

    return call_or_row_error


def raise_row_error(row: Row) -> Row:
    """The row itself, unless it holds an error: that error is raised, of its own kind."""
    if "error" in row:
        raise getattr(errors, row["error"])(row["message"])
    return row
