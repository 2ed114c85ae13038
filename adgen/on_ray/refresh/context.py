"""What every stage of a run needs to know."""

from dataclasses import dataclass, field

from adgen.creatives.journal import Journal
from adgen.creatives.stores import open_storage
from adgen.creatives.tombstones import Tombstones
from adgen.on_ray.refresh.settings import RefreshSettings


@dataclass(frozen=True)
class Context:
    """What every stage of a run needs; small and picklable."""

    settings: RefreshSettings
    run_id: str
    model_digest: str
    settings_digest: str
    campaign_key: bytes | None = field(default=None, repr=False)
    """To know forgotten users by, at every commit; none where nothing is committed."""
    history_items: int = 0
    """Items of a prompt that shows any: fewer drawn clicks are repeated. 0 shows them as drawn."""

    untrained: bool = False
    """Whether modules of the model are: each row's gate `model` says so."""

    def journal(self) -> Journal:
        """The run's plan and journal."""
        storage = open_storage(self.settings.store, self.settings.s3)
        tombstones = Tombstones(storage, self.campaign_key) if self.campaign_key else None
        return Journal(storage, self.settings.campaign, self.run_id, tombstones)
