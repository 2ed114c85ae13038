"""A step of the device's work as one CUDA graph: launched once, however many kernels it has."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WARM_UP_CALLS = 3  # libraries pick their kernels and workspaces in the first ones, which a graph must not hold


class CapturedStep:
    """Calls `function`, which reads and writes tensors that stay where they are, and neither takes nor returns anything.

    On a CUDA device the first call captures it and later ones replay the graph; on others it is called plainly.
    """

    def __init__(
        self, function: Callable[[], None], device: torch.device, state: Callable[[], Sequence[Tensor]], capture: bool = True
    ):
        """state: small tensors that a call changes; warming up leaves them as they were. A call appends to a
        cache after its rows' lengths, which are among these tensors."""
        self._function, self._state = function, state
        self._device = device
        self._captures = capture and device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        if not self._captures:
            self._function()
            return
        if self._graph is None:
            self._capture()
        self._graph.replay()

    def _capture(self) -> None:
        before = [tensor.clone() for tensor in self._state()]
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_CALLS):
                self._function()
                self._restore(before)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._function()
        self._graph = graph

    def _restore(self, before: Sequence[Tensor]) -> None:
        for tensor, value in zip(self._state(), before, strict=True):
            tensor.copy_(value)
