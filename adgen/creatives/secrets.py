"""Files with the secrets of a campaign, for jobs and for consumers who know a user by id: the key that names its pairs, and the
secret that names its users in a manifest."""

from pathlib import Path

from adgen.creatives.documents import RunDocument
from adgen.errors import ConsumerError, SettingsError
from adgen.records import bound_key, key_id, pair_id, user_key

MIN_BYTES = 16
# For laptops and tests: anyone can compute what these keys make, so they protect nobody.
DEVELOPMENT_KEYS = {"campaign_key": b"adgen development campaign key", "user_secret": b"adgen development user secret"}


def read_key(path: Path, what: str) -> bytes:
    """The secret in a file. SettingsError: it cannot be read, everybody can read it, or it is too short.

    The group may read it, and another user may own it: so clusters mount secrets. What the path says is never repeated
    where there is no such file: somebody may have written the secret itself in its place.
    """
    try:
        mode, data = path.stat().st_mode, path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"{what}: the file that it names: {error.strerror}") from None
    if mode & 0o007:
        raise SettingsError(f"{what}: everybody on this machine can use {path}; take the right away with chmod o-rwx")
    if len(data) < MIN_BYTES:
        raise SettingsError(f"{what}: {path} holds {len(data)} bytes, needs at least {MIN_BYTES}")
    return data


def user_key_of(run: RunDocument, secret: Path | bytes | None, user_id: str) -> str:
    """What a run's manifest calls the user."""
    return user_key(_secret_of(run, "user_secret", secret), user_id)


def pair_of(
    run: RunDocument, key: Path | bytes | None, user_id: str, product_id: str, locale: str | None, channel: str | None
) -> str:
    """The pair_id of a user and a product in a run's campaign."""
    return pair_id(bound_key(_secret_of(run, "campaign_key", key), run.campaign), user_id, product_id, locale, channel)


def _secret_of(run: RunDocument, name: str, given: Path | bytes | None) -> bytes:
    """The secret that the run was made with. ConsumerError: it is another, or none was given."""
    said = run.key_ids.get(name)
    if given is None:
        secret = DEVELOPMENT_KEYS[name]
        if said != key_id(secret):
            raise ConsumerError(f"run {run.run_id} was made with a {name} of its own ({said}): give the file with it")
        return secret
    secret = given if isinstance(given, bytes) else read_key(Path(given), name)
    if said is not None and said != key_id(secret):
        raise ConsumerError(f"run {run.run_id} was made with {name} {said}, and the one that was given is {key_id(secret)}")
    return secret
