"""The two secrets of a campaign: the key that names its pairs, and the secret that names its users in a manifest.

They are read from files, never from settings, and never saved: run.json holds only their key ids. The campaign key never
rotates (it names pairs for good); the user secret may, from run to run.
"""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from adgen.config import Settings
from adgen.creatives.secrets import DEVELOPMENT_KEYS, read_key
from adgen.errors import SettingsError
from adgen.records import bound_key, key_id


class KeySettings(Settings):
    """Where the secrets are. Each is a file of at least 16 bytes; white space at its ends does not count."""

    campaign_key: Path | None = None
    """File with the key of pair ids; it stays the same for a campaign's life."""
    user_secret: Path | None = None
    """File with the secret of user keys; it may rotate."""
    allow_development_keys: bool = Field(default=False)
    """Let a store on s3:// be written with the public development keys."""


@dataclass(frozen=True)
class Keys:
    """The secrets themselves; never printed."""

    campaign_key: bytes = field(repr=False)
    user_secret: bytes = field(repr=False)

    def for_campaign(self, campaign: str) -> "Keys":
        """The same secrets bound to a campaign, so that two campaigns never share a pair id."""
        return Keys(bound_key(self.campaign_key, campaign), self.user_secret)

    @property
    def ids(self) -> dict[str, str]:
        """What run.json may say of them."""
        return {"campaign_key": key_id(self.campaign_key), "user_secret": key_id(self.user_secret)}


def load_keys(settings: KeySettings, store_uri: str) -> Keys:
    """The secrets from their files. SettingsError: unreadable, too short, or development keys for an s3:// store."""
    secrets = {}
    for name, development in DEVELOPMENT_KEYS.items():
        path = getattr(settings, name)
        if path is None:
            if store_uri.startswith("s3://") and not settings.allow_development_keys:
                raise SettingsError(
                    f"keys.{name}: none given, and {store_uri} is no laptop folder: name a file with a secret, "
                    "or set keys.allow_development_keys to use the public one"
                )
            secrets[name] = development
            continue
        secrets[name] = read_key(path, f"keys.{name}")
    return Keys(**secrets)
