"""A folder on this disk for what `private/` holds. It goes with its process: the next one removes those of killed ones."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "adgen-serve-"


class ScratchFolder:
    """Only its owner may read it. Its file `lock` is locked as long as the process lives."""

    def __init__(self, parent: Path | None = None):
        """parent: default the system's folder for such."""
        parent = parent or Path(tempfile.gettempdir())
        for left in parent.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        new = self.path / "lock.new"
        self._lock = new.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(self.path / "lock")  # locked from its first moment on

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _remove_if_left(folder: Path) -> None:
    with suppress(OSError), open(folder / "lock") as lock:  # another user's, one that is being made, one whose process lives
        if os.fstat(lock.fileno()).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
