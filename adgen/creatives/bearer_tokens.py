"""Bearer tokens of the service: a file with the hash of each, what it may do and until when. The token itself is shown once.

A token is 256 random bits, so its plain SHA-256 cannot be guessed back.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, get_args

from pydantic import ConfigDict, Field, ValidationError

from adgen.creatives.documents import Document, utc_now
from adgen.errors import SettingsError

Scope = Literal["read", "generate", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_PREFIX = "adgen_"


class Token(Document):
    """What the file says of a token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    """Whose it is: logs and limits name it."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...]
    expires_at: datetime | None = None
    per_minute: int | None = Field(default=None, gt=0)
    """Requests that it may make in a minute; default as the service is set."""

    def allows(self, scope: Scope) -> bool:
        """Whether it may do that; admin may do everything."""
        return scope in self.scopes or "admin" in self.scopes

    def is_expired(self, now: datetime | None = None) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= (now or utc_now())


class TokenFile:
    """The tokens of a file, read again when it changes: a token is revoked by taking its entry out."""

    def __init__(self, path: Path):
        """SettingsError: there is no such file, everybody can write it, or it is no list of tokens."""
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._tokens: tuple[Token, ...] = ()
        self._read()

    def find(self, token: str) -> Token | None:
        """The entry of a token, expired ones too; None if there is none. Takes as long for a wrong token as for a right one."""
        self._read()
        asked, found = hash_of(token), None
        for each in self._tokens:
            if hmac.compare_digest(each.sha256, asked):
                found = each
        return found

    def _read(self) -> None:
        try:
            about = self.path.stat()
            stamp = about.st_mtime_ns, about.st_size
            if stamp == self._stamp:
                return
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise SettingsError(f"auth.tokens: {self.path}: {error}; `adgen token new` writes it") from None
        if about.st_mode & 0o002:
            raise SettingsError(f"auth.tokens: everybody on this machine can write {self.path}; take the right away with chmod o-w")
        self._tokens, self._stamp = _parsed(text, self.path), stamp


def new_token(path: Path, name: str, scopes: Sequence[Scope], days: int | None = None, per_minute: int | None = None) -> str:
    """Add a token to the file, which is made where there is none; the token. SettingsError: the name is taken, or the file is no
    list of tokens."""
    before = _parsed(path.read_text(encoding="utf-8"), path) if path.exists() else ()
    if any(each.name == name for each in before):
        raise SettingsError(f"{path}: there is a token {name!r} already; take its entry out to revoke it, or choose another name")
    token = _PREFIX + secrets.token_urlsafe(32)
    expires = utc_now() + timedelta(days=days) if days is not None else None
    try:
        entry = Token(name=name, sha256=hash_of(token), scopes=tuple(scopes), expires_at=expires, per_minute=per_minute)
    except ValidationError as error:
        raise SettingsError(f"token {name!r}: {error.errors(include_url=False)[0]['msg']}") from None
    made = path.with_name(path.name + ".new")
    with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640), "w", encoding="utf-8") as file:
        json.dump([each.model_dump(mode="json", exclude_none=True) for each in (*before, entry)], file, indent=1)
        file.write("\n")
    os.replace(made, path)
    return token


def hash_of(token: str) -> str:
    """What the file has of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _parsed(text: str, path: Path) -> tuple[Token, ...]:
    try:
        entries = json.loads(text)
        if not isinstance(entries, list):
            raise ValueError("expected a list")
        return tuple(Token.model_validate(each) for each in entries)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: no list of tokens: {' '.join(str(error).split())[:300]}") from None
