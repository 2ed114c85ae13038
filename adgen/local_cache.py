"""Folders of this user for what can be fetched or made again: catalog files, models, what a query spills."""

import os
import stat
import tempfile
from pathlib import Path

from adgen.errors import StoreError


def user_cache(name: str) -> Path:
    """A folder that processes of this user share on this machine, and nobody else enters.

    StoreError where somebody else was there first: /tmp is everybody's.
    """
    base = Path(tempfile.gettempdir()) / f"adgen-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StoreError(f"{base}: belongs to another user, or is no folder: remove it, or set TMPDIR to a folder of your own")
    if found.st_mode & 0o077:
        base.chmod(0o700)
    folder = base / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
