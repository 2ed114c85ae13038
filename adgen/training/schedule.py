"""The learning rate as a function of the step alone, so that resuming needs no state."""

import math

from adgen.training.settings import OptimizerSettings


def learning_rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """The rate of optimizer step `step` (0, 1, ...) of `steps`."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    share = settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate * share
