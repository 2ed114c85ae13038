"""What every stage of a run needs to know."""

from dataclasses import dataclass

from adgen.creatives.journal import Journal
from adgen.creatives.stores import open_storage
from adgen.on_ray.refresh.settings import RefreshSettings


@dataclass(frozen=True)
class Context:
    """What every stage of a run needs; small and picklable."""

    settings: RefreshSettings
    run_id: str
    model_digest: str
    settings_digest: str

    def journal(self) -> Journal:
        """The run's plan and journal."""
        storage = open_storage(self.settings.store, self.settings.s3)
        return Journal(storage, self.settings.campaign, self.run_id)
