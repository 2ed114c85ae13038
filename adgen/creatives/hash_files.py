"""Sets of hashes larger than memory: one local file for each of the 256 first bytes, written and compared one by one."""

from collections.abc import Iterable, Iterator
from pathlib import Path

SHARDS = [f"{number:02x}" for number in range(256)]
_BUFFER_BYTES = 2**16


class HashFiles:
    """Records of `size` bytes, a hash first, spread over files in `folder` by their first byte.

    One file is open at a time: a process may have few handles.
    """

    def __init__(self, folder: Path, size: int = 32):
        self.folder, self.size = folder, size
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, records: Iterable[bytes]) -> None:
        """Append the records; repeats cost room only."""
        buffers = [bytearray() for _ in SHARDS]
        for record in records:
            buffer = buffers[record[0]]
            buffer += record
            if len(buffer) >= _BUFFER_BYTES:
                self._append(record[0], buffer)
        for number, buffer in enumerate(buffers):
            self._append(number, buffer)

    def read(self, shard: str) -> set[bytes]:
        """The records whose hash begins with `shard`, two hex digits."""
        path = self.folder / shard
        data = path.read_bytes() if path.exists() else b""
        return {data[start : start + self.size] for start in range(0, len(data), self.size)}

    def without(self, other: "HashFiles") -> Iterator[bytes]:
        """The records that `other` does not have."""
        for shard in SHARDS:
            yield from self.read(shard) - other.read(shard)

    def _append(self, number: int, buffer: bytearray) -> None:
        if buffer:
            with open(self.folder / SHARDS[number], "ab") as file:
                file.write(buffer)
            buffer.clear()
