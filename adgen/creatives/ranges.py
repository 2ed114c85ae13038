"""A file in a store that is read piece by piece, as Parquet readers do: its end first, then what is wanted of it."""

import io
from collections.abc import Iterable

from adgen.creatives.documents import ManifestFile
from adgen.creatives.storage import Piece, Storage
from adgen.errors import ConsumerError

_GAP_BYTES = 2**18  # a request costs more time than so many bytes that nobody asked for


class RangedFile(io.RawIOBase):
    """A manifest file without its bytes. `load` fetches what is read next, in as few requests as is sensible; what was not loaded
    is fetched when it is read. One thread at a time."""

    def __init__(self, storage: Storage, file: ManifestFile, end: bytes = b""):
        self._storage, self._file = storage, file
        self.end = end
        """The file's last bytes, as far as they were read: Parquet's footer. Give them to the next reader of the file."""
        self._loaded: list[tuple[int, bytes]] = []
        self._position = 0

    def load(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch these ranges (start, stop), neighbours in one request; what was loaded before is dropped."""
        self._loaded = [(start, self._fetch(start, stop)) for start, stop in merged(ranges)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._file.bytes)[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start = self._position
        stop = self._file.bytes if size is None or size < 0 else min(start + size, self._file.bytes)
        self._position = max(start, stop)
        return self._bytes(start, stop) if stop > start else b""

    def _bytes(self, start: int, stop: int) -> bytes:
        first_of_end = self._file.bytes - len(self.end)
        for first, data in [*self._loaded, (first_of_end, self.end)]:
            if first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        if stop == self._file.bytes or start < first_of_end < stop:  # more of the end
            self.end = self._fetch(start, first_of_end) + self.end
            return self.end[: stop - start]
        return self._fetch(start, stop)

    def _fetch(self, start: int, stop: int) -> bytes:
        piece = self._storage.get_range(self._file.key, start, stop)
        return checked_piece(self._storage, self._file, piece, stop - start)


def checked_piece(storage: Storage, file: ManifestFile, piece: Piece | None, num_bytes: int) -> bytes:
    """Bytes of a manifest file; ConsumerError if it is gone, or not as long as run.json says."""
    address = storage.address(file.key)
    if piece is None:
        raise ConsumerError(f"{address}: is gone; read latest.json again, and where it still names this run publish another one")
    if piece.size != file.bytes or len(piece.data) != num_bytes:
        raise ConsumerError(differs(address))
    return piece.data


def differs(address: str) -> str:
    """What is said of a manifest file with other bytes than were published."""
    return f"{address}: differs from what run.json says of it; `adgen verify` names more, `adgen rollback` publishes another run"


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in order, those with little between them as one."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1] + _GAP_BYTES:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found
