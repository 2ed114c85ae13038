"""Settings of `jobs/evaluate.py proof`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from tyro.conf import arg

from adgen.config import PLACE, Settings
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.sampling_settings import SamplingChoice
from adgen.on_ray.cluster_settings import ClusterSettings


class ProofSettings(Settings):
    """What is measured, on which shop, with which model."""

    ADDED = frozenset({"allow_untrained", "unseen", "titles", "pictures", "photographs"})

    model: Path | None = None
    """Model directory; default the model that ships with the package."""
    allow_untrained: bool = False
    """Take a model with untrained modules, to try the machinery."""
    encoder: Path | None = None
    """Directory of a PBS encoder (stage pbs); default the one that ships with the package."""
    seed: int = Field(default=1, ge=0)
    """Of the held-out shop: another one draws other users, products and pictures, that nobody trained on either."""
    pairs: int = Field(default=400, gt=1)
    """Pairs, one a user, each with a reference creative."""
    inputs: Annotated[str | None, PLACE] = None
    """Measure on these tables (products, histories, references) instead of a shop that is drawn. Where no styles.parquet
    lies in their folder, nothing is known of the users' styles, and what needs it is left out."""
    unseen: tuple[Literal["drawn", "open words", "photographs"], ...] = ("drawn", "open words", "photographs")
    """Sections on ground that no training showed: drawn styles and words kept out of it, with 0 to 20 clicks and with strays;
    any words; photographs. Empty: the ten styles alone."""
    titles: int = Field(default=1000, gt=1)
    """Titles of each unseen section's conditions, drawn without pictures."""
    pictures: int = Field(default=200, gt=1)
    """Pictures of the same."""
    photographs: Path | None = None
    """A folder of photographs (backgrounds/CLASS/*.jpg, cutouts/*.png, products.json), of which the split eval is shown."""
    ablation: Path | None = None
    """Folder of models to compare on the same pairs, as NAME/model; each adds a row."""
    noise: tuple[float, ...] = (0.1, 0.3, 0.5)
    """Shares of clicks in random other styles, of controlled histories; each adds a row."""
    shop: Path | None = None
    """Folder where the drawn shop stays; default a temporary one. A shop that lies there already is used again."""
    sheet: Path | None = None
    """Picture file to write: some products, each with several users' histories."""
    classifier_pictures: int = Field(default=4000, ge=100)
    """Pictures that the style classifier is trained on, drawn with other seeds than the held-out shop."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where engines run."""
    sampling: SamplingChoice = SamplingChoice()
    engine: EngineSettings = EngineSettings()
    cluster: Annotated[ClusterSettings, arg()] = ClusterSettings()

    @field_validator("noise")
    @classmethod
    def _are_shares(cls, noise: tuple[float, ...]) -> tuple[float, ...]:
        if bad := [share for share in noise if not 0 <= share <= 1]:
            raise ValueError(f"{bad[0]} is no share of clicks: give numbers from 0 to 1")
        return noise
