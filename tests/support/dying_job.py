"""jobs/refresh.py with a real SIGKILL at an exact moment: the driver kills itself as it enters or leaves a function.

python dying_job.py MOMENT ARGUMENTS OF jobs/refresh.py ...
"""

import functools
import importlib
import os
import signal
import sys
from pathlib import Path

from adgen.creatives import publish
from adgen.on_ray.refresh import job as refresh

# Moment -> a function of adgen.creatives.publish, and whether it still runs.
MOMENTS = {
    "when the manifest is written": ("compact", True),
    "before the swap": ("publish", False),
    "after the swap": ("_swap", True),
}


def die_at(moment: str) -> None:
    """Let the function that marks the moment end this process."""
    name, runs = MOMENTS[moment]
    function = getattr(publish, name)

    @functools.wraps(function)
    def dying(*arguments, **options):
        if runs:
            function(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(publish, name, dying)


if __name__ == "__main__":
    die_at(sys.argv[1])
    # The driver before this one is surely dead: no need to wait for a sign of life from it.
    refresh.start_or_resume = functools.partial(refresh.start_or_resume, patience_seconds=0.1)
    sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))
    job = importlib.import_module("refresh")
    sys.exit(job.main(sys.argv[2:]))
