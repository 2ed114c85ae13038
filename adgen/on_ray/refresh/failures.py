"""When a run stops instead of going on, and how it is left."""

from contextlib import suppress
from typing import Any

from adgen.creatives.runs import Run
from adgen.errors import AdgenError, EngineLost, OwnedElsewhere, RunError, StoreError
from adgen.on_ray.refresh.settings import FailureSettings


class FailureWatch:
    """Stops a run that cannot become good: all of its first shard failing, no row of its engines succeeding, or too large a share
    failing.

    It judges rows that the plan meant for an engine and that did not fail in the published run already: what failed yesterday says
    nothing about this run. `carried` rows count as good from the start.
    """

    def __init__(self, settings: FailureSettings, carried: int = 0):
        self.settings = settings
        self.carried = carried
        self.judged = self.failed = self.succeeded = 0
        self._is_first = not carried

    def count(self, done: dict[str, Any]) -> None:
        """Take a shard's counts; RunError when the run should stop."""
        # One new pair that fails is a row's matter; a whole shard that fails is the run's.
        if self._is_first and done["rows"] == done["failed"] and done["pairs"] > 1 and not done["retried"]:
            raise RunError(f"all {done['pairs']} pairs of the first shard failed; nothing is published (see `adgen report`)")
        self._is_first = False
        self.judged += done["judged"]
        self.failed += done["judged_failed"]
        self.succeeded += max(done["made_ok"], done["judged"] - done["judged_failed"])
        if self.judged >= self.settings.after_rows and not self.succeeded:
            raise RunError(f"none of {self.judged} pairs that engines were given in this run succeeded; nothing is published")
        rows = self.carried + self.judged
        if rows >= self.settings.after_rows and self.failed > self.settings.max_failed_share * rows:
            raise RunError(
                f"{self.failed} of {rows} pairs failed, more than failures.max_failed_share "
                f"{self.settings.max_failed_share:.0%}; nothing is published"
            )


class ended_on_failure:
    """A RunError ends the run as FAILED, unless it is the surroundings' failure (store, lost engines): that and anything
    else leaves the run to be resumed by the same command."""

    def __init__(self, run: Run):
        self.run = run

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, _: Any) -> None:
        cause = getattr(error, "cause", None)  # what a worker raised, of which Ray made its own error
        if isinstance(cause, AdgenError):
            error = cause
        if isinstance(error, OwnedElsewhere) or error is None:
            return
        if isinstance(error, RunError) and not isinstance(error, (StoreError, EngineLost)):
            self.run.end("FAILED", str(error)[:500])
        elif self.run.document.unfinished:
            with suppress(StoreError):  # a heartbeat that stops says the same to the next driver, only later
                self.run.release(f"stopped by {type(error).__name__}")
        if error is cause:
            raise error
