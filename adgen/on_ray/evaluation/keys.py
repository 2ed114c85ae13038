"""The two secrets of a model's evaluation: those of the settings, else files of its own. Anyone can compute what development keys
make, and rows carry user_key."""

import os
import secrets
from pathlib import Path

from adgen.creatives.secrets import DEVELOPMENT_KEYS, read_key
from adgen.errors import SettingsError
from adgen.on_ray.evaluation.settings import ModelEvaluationSettings
from adgen.shop.key_files import KeySettings


def keys_of(settings: ModelEvaluationSettings) -> KeySettings:
    """Where the secrets lie: files of the settings, else OUT/store/private/campaign_key and user_secret.

    Those are made where they are missing: copies of the files of `against`, since creatives are compared by pair_id, which the
    campaign key makes; else random. SettingsError: `against` has no campaign key.
    """
    if settings.keys.allow_development_keys:
        return settings.keys
    given = {name: getattr(settings.keys, name) for name in DEVELOPMENT_KEYS}
    return settings.keys.model_copy(update={name: file or _own_file(settings, name) for name, file in given.items()})


def _own_file(settings: ModelEvaluationSettings, name: str) -> Path:
    file = settings.out / "store" / "private" / name
    if not file.exists():
        _write_secret(file, _taken_over(settings.against, name) or secrets.token_hex(32).encode())
    return file


def _taken_over(against: Path | None, name: str) -> bytes | None:
    """The secret of the evaluation to compare with; None: it may be another one."""
    file = against and against / "store" / "private" / name
    if file and file.exists():
        return read_key(file, "against")
    if file and name == "campaign_key":
        raise SettingsError(
            f"against: {against} has no file store/private/{name}, so none of its creatives would be found here: name the key file "
            "that it was made with by --keys.campaign-key, or, where it was made before version 0.2.0, give "
            "--keys.allow-development-keys"
        )
    return None


def _write_secret(file: Path, secret: bytes) -> None:
    """For the owner alone, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    begun = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(secret + b"\n")
    begun.replace(file)
