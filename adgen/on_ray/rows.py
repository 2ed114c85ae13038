"""A stage's RunError on its way to the driver, as a row: Ray Data wraps whatever a stage raises, and the driver could no
longer tell a full disk from a fault of ours."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from adgen import errors
from adgen.errors import RunError

Row = dict[str, Any]


def telling(call: Callable[[Any, Row], Row]) -> Callable[[Any, Row], Row]:
    """A stage's `__call__` whose RunError becomes a row, which the stages behind it let pass. For a constructor there is
    no such way, so a stage does there nothing that may fail."""

    @wraps(call)
    def telling_call(stage: Any, row: Row) -> Row:
        if "error" in row:
            return row
        try:
            return call(stage, row)
        except RunError as error:
            kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
            return {"index": row["index"], "error": kind.__name__, "message": str(error)}

    return telling_call


def raise_told(row: Row) -> Row:
    """The row itself, unless it tells of an error: that error, of its own kind."""
    if "error" in row:
        raise getattr(errors, row["error"])(row["message"])
    return row
