"""Creatives of an evaluation keep what the model painted before the product was pasted over it: whether the model shows the
product itself cannot be seen of a finished creative, where finishing has put it right."""

import numpy as np

from adgen.creatives import layout
from adgen.finishing.finish import ProductFacts
from adgen.on_ray.refresh.commit import FinishAndCommit
from adgen.on_ray.refresh.payload import lossless
from adgen.on_ray.refresh.stages import Stages
from adgen.on_ray.rows import Row


class FinishKeepingUnpasted(FinishAndCommit):
    """`FinishAndCommit` that stores each painted picture, without loss, before its creative."""

    def background(self, pair: Row, product: ProductFacts) -> np.ndarray:
        """As there."""
        background = super().background(pair, product)
        key = layout.unpasted_picture(self.journal.campaign, pair["pair_id"], pair["fingerprint"])
        self.journal.storage.put(key, lossless(background))
        return background


KEEPING_UNPASTED = Stages(finish=FinishKeepingUnpasted)
