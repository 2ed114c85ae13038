"""A campaign as a consumer holds it: a store, a name, and from them runs. `adgen.creatives.open_campaign` makes one."""

from dataclasses import dataclass

from adgen.creatives.layout import checked_campaign
from adgen.creatives.reading import ManifestReader, PublishedRun, open_published, open_run
from adgen.creatives.storage import Storage


@dataclass(frozen=True)
class Campaign:
    """Nothing is read until a run is opened."""

    storage: Storage
    name: str

    def __post_init__(self) -> None:
        checked_campaign(self.name)

    def published(self) -> PublishedRun:
        """The run that is published now, pinned: hold it while you work, and ask again for a newer one. ConsumerError says what is
        wrong with what is published."""
        return open_published(self.storage, self.name)

    def run(self, run_id: str) -> ManifestReader:
        """An older run, or one that was not published. ConsumerError: it is not there, or has no manifest yet."""
        return open_run(self.storage, self.name, run_id)
