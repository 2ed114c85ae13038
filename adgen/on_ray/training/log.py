"""What a run writes for people: a line a step, TensorBoard files, sample sheets. Kept by the first worker."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
from PIL import Image
from tensorboardX import SummaryWriter

from adgen.on_ray.training.run_folder import RunFolder

LOSSES, TENSORBOARD, SAMPLES = "losses.txt", "tensorboard", "samples"
_GAP = 2


class TrainingLog:
    """Logs of one run; what an earlier try wrote beyond the checkpoint is taken back."""

    def __init__(self, folder: RunFolder, step: int):
        self.folder = folder
        self.local = Path(folder.path) if folder.is_local else Path(tempfile.mkdtemp(prefix="adgen-log-"))
        self.local.mkdir(parents=True, exist_ok=True)
        self._restore(step)
        self.losses = open(self.local / LOSSES, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self.tensorboard = SummaryWriter(str(self.local / TENSORBOARD), purge_step=step or None, write_to_disk=True)

    def _restore(self, step: int) -> None:
        path = self.local / LOSSES
        if not self.folder.is_local:
            remote = f"{self.folder.path}/{LOSSES}"
            if self.folder.files.get_file_info(remote).type == pafs.FileType.File:
                with self.folder.files.open_input_file(remote) as source:
                    path.write_bytes(source.read())
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        path.write_text("".join(lines[:step]), encoding="utf-8")

    def step(self, step: int, loss: float, scalars: dict[str, float]) -> None:
        """One optimizer step's numbers."""
        self.losses.write(f"{step} {loss:.6f}\n")
        self.losses.flush()
        self.scalars(step, {"loss": loss} | scalars)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers for TensorBoard."""
        for name, value in values.items():
            self.tensorboard.add_scalar(name, value, step)

    def sheet(self, step: int, pictures: list[Image.Image], lines: list[str]) -> None:
        """A sample sheet: a row an example, and what was written for each in a text file next to it."""
        if not pictures:
            return
        grid = as_grid(pictures, len(pictures) // len(lines))
        folder = self.local / SAMPLES
        folder.mkdir(exist_ok=True)
        grid.save(folder / f"step-{step:08}.png")
        (folder / f"step-{step:08}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.tensorboard.add_image("samples", np.asarray(grid), step, dataformats="HWC")
        self.tensorboard.add_text("samples", "\n\n".join(lines), step)

    def sync(self) -> None:
        """Put what was written where the run's folder is."""
        self.losses.flush()
        self.tensorboard.flush()
        if not self.folder.is_local:
            local = pafs.LocalFileSystem()
            pafs.copy_files(str(self.local), self.folder.path, source_filesystem=local, destination_filesystem=self.folder.files)

    def close(self) -> None:
        """Flush and close; a full disk has been spoken of before."""
        self.sync()
        self.losses.close()
        self.tensorboard.close()


def as_grid(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows of `columns`, each at the size of the largest."""
    side = max(max(picture.size) for picture in pictures)
    rows = math.ceil(len(pictures) / columns)
    grid = Image.new("RGB", (columns * (side + _GAP) - _GAP, rows * (side + _GAP) - _GAP), "white")
    for index, picture in enumerate(pictures):
        at = (index % columns * (side + _GAP), index // columns * (side + _GAP))
        grid.paste(picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST), at)
    return grid
