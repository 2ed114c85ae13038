"""What happens to a shard: look-up, generate, finish and commit. One class a stage; Ray Data strings them together.

A dataset row is a whole shard: its entry of plan.json, then in "shard" its tables as bytes. So no block splitting can cut
it (docs/design.md 7.1), a stage's memory is one shard's, and no stage reads plan.json, which grows with the campaign.
"""

from typing import NamedTuple

from adgen.on_ray.refresh.commit import FinishAndCommit
from adgen.on_ray.refresh.generate import Generate
from adgen.on_ray.refresh.look_up import LookUp


class Stages(NamedTuple):
    """The classes that a shard passes through. The data benchmark and evaluations put others in their place; no setting can."""

    look_up: type = LookUp
    generate: type = Generate
    finish: type = FinishAndCommit


STAGES = Stages()
