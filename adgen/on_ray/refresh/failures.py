"""When a run stops instead of going on, and how it is left."""

from contextlib import suppress
from typing import Any

from adgen.creatives.runs import Run
from adgen.errors import AdgenError, EngineLost, OwnedElsewhere, RunError, StoreError
from adgen.on_ray.refresh.settings import FailureSettings


class FailureWatch:
    """Stops a run that cannot become good: all of its first shard failing, or too large a share of all."""

    def __init__(self, settings: FailureSettings):
        self.settings = settings
        self.rows = self.failed = 0

    def count(self, done: dict[str, Any]) -> None:
        """Take a shard's counts; RunError when the run should stop."""
        first = self.rows == 0
        self.rows += done["rows"]
        self.failed += done["failed"]
        # One new pair that fails tonight is a row's matter; a whole shard that fails is the run's.
        if first and done["rows"] == done["failed"] > 1:
            raise RunError(f"all {done['rows']} pairs of the first shard failed; nothing is published (see `adgen report`)")
        share = self.failed / self.rows
        if self.rows >= self.settings.after_rows and share > self.settings.max_failed_share:
            raise RunError(
                f"{self.failed} of {self.rows} pairs failed, more than failures.max_failed_share "
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
