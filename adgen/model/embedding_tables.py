"""Embedding tables."""

from torch import nn


class Table(nn.Embedding):
    """An embedding table that draws nothing when it is made: `initialize` or a checkpoint fills it.

    torch's own is drawn at once, and drawing normals on the meta device, where models are made to be filled, loads torch's
    compiler: one to three seconds of every process.
    """

    def reset_parameters(self) -> None:
        """Nothing."""
