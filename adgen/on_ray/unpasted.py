"""Creatives of an evaluation keep what the model painted before the product was pasted over it: whether the model shows the
product itself cannot be seen of a finished creative, where finishing has put it right."""

from adgen.creatives import layout
from adgen.creatives.storage import Storage
from adgen.finishing.finish import Finished
from adgen.on_ray.payload import Row
from adgen.on_ray.stages import FinishAndCommit, Stages


class FinishKeepingUnpasted(FinishAndCommit):
    """`FinishAndCommit` that stores each painted picture, without loss, before its creative."""

    def creative(self, pair: Row, pictures: dict[str, bytes]) -> Finished:
        """As there."""
        key = layout.unpasted_picture(self.journal.campaign, pair["pair_id"], pair["fingerprint"])
        self.journal.storage.put(key, pair["picture"])
        return super().creative(pair, pictures)


KEEPING_UNPASTED = Stages(finish=FinishKeepingUnpasted)


def read_unpasted(storage: Storage, campaign: str, row: Row) -> bytes | None:
    """The painted picture of a manifest row (PNG); None where none was kept."""
    stored = storage.get(layout.unpasted_picture(campaign, row["pair_id"], row["fingerprint"])) if row["fingerprint"] else None
    return stored.data if stored else None
