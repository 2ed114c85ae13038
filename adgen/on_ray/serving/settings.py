"""Settings of jobs/serve.py: those of the refresh that decide a creative, and how it is served."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from adgen.config import FinishSettings, PictureSettings, Place, Settings
from adgen.creatives.served import KEEP_DAYS
from adgen.creatives.storage import S3Access
from adgen.errors import SettingsError
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.sampling_settings import SamplingChoice
from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.refresh.settings import PlanSettings, RefreshSettings
from adgen.shipped import shipped_model
from adgen.shop.key_files import KeySettings


class HttpSettings(Settings):
    """Where the service listens."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every network of the machine."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port."""


class AuthSettings(Settings):
    """Who may ask."""

    tokens: Path | None = None
    """File of token hashes, which `adgen token new` writes. It is read again when it changes."""
    per_minute: int = Field(default=600, gt=0)
    """Requests that a token may make in a minute."""


class LoadSettings(Settings):
    """How much is taken on."""

    min_replicas: int = Field(default=1, ge=1)
    """Engines that always run."""
    max_replicas: int = Field(default=1, ge=1)
    """Engines at most; more than the least start when requests wait."""
    max_queued: int = Field(default=64, ge=1)
    """Requests that wait beyond what engines have taken; further ones get 429."""
    retry_after_seconds: int = Field(default=5, ge=1)
    """What a 429 tells the client to wait."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """Until a request gets 504; the header x-request-timeout-seconds may ask for less."""
    max_body_bytes: int = Field(default=12 * 2**20, gt=0)
    """Of a request."""
    max_picture_bytes: int = Field(default=8 * 2**20, gt=0)
    """Of a product's picture in a request."""
    max_creatives: int = Field(default=4, ge=1, le=16)
    """Creatives of a request (n)."""


class ServedSettings(Settings):
    """What becomes of creatives that were made on demand."""

    keep_days: int = Field(default=KEEP_DAYS, ge=1)
    """Days until clean-up may remove them."""
    url_seconds: int = Field(default=3600, ge=1, le=7 * 24 * 3600)
    """How long a link to a picture in S3 works."""
    follow_seconds: float = Field(default=5.0, gt=0)
    """How often the service looks for a newly published run."""


class ServeSettings(Settings):
    """Serve a campaign: published creatives are read, others made on request. inputs, plan, sampling, engine and finish as in the
    refresh's settings make the same creatives as the refresh."""

    inputs: Place = ""
    """Folder or URI of the tables products, histories and pairs; {campaign} in it stands for the campaign's name."""
    store: Place = ""
    """Root of all outputs: a folder or s3://bucket/prefix."""
    campaign: str = ""
    """Campaign that creatives are made for; those of others can be read."""
    model: Path | None = None
    """Model directory; default the small trained one of this package."""
    allow_untrained: bool = False
    """Take a model with untrained modules, to try the machinery."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where engines run."""
    http: HttpSettings = HttpSettings()
    auth: AuthSettings = AuthSettings()
    load: LoadSettings = LoadSettings()
    served: ServedSettings = ServedSettings()
    plan: PlanSettings = PlanSettings()
    sampling: SamplingChoice = SamplingChoice()
    engine: EngineSettings = EngineSettings()
    pictures: PictureSettings = PictureSettings()
    finish: FinishSettings = FinishSettings()
    cluster: ClusterSettings = ClusterSettings()
    keys: KeySettings = KeySettings()
    s3: S3Access = S3Access()

    def refresh(self) -> RefreshSettings:
        """The refresh that makes the same creatives."""
        shared = {name: getattr(self, name) for name in type(self).model_fields if name in RefreshSettings.model_fields}
        return RefreshSettings(**shared).of(self.campaign)

    def complete(self, no_auth: bool = False) -> "ServeSettings":
        """With defaults that depend on the package and absolute places. SettingsError names what is missing or unsafe."""
        settings = self.model_copy(update={"model": self.model or shipped_model()}).with_whole_paths()
        if missing := [name for name in REQUIRED if not getattr(settings, name)]:
            raise SettingsError(f"neither a file nor the command line gives {', '.join(missing)}")
        if no_auth and settings.http.host not in LOOPBACK:
            raise SettingsError(
                f"--no-auth: {settings.http.host} is reached from other machines; give auth.tokens, or listen on 127.0.0.1"
            )
        if not no_auth and settings.auth.tokens is None:
            raise SettingsError(
                "auth.tokens: no file of tokens; `adgen token new` makes one (jobs/serve.py --no-auth asks for none, on loopback)"
            )
        if settings.engine.tensor_parallel > 1:
            raise SettingsError("engine.tensor_parallel: the service runs engines of one rank; use a GPU that holds the model")
        return settings


REQUIRED = ("inputs", "store", "campaign")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
