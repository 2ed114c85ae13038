"""A clock for single steps, which does not hold up the device that it measures."""

import time

import torch


class StepClock:
    """Strike it once a step, in a loop; `seconds` are the times between strikes. On a CUDA device a strike is an event in
    the stream, read when all is over: waiting at every step would slow down what is measured."""

    def __init__(self, device: torch.device):
        self.device = device
        self._struck: list = []

    def strike(self) -> None:
        """A step begins (and the one before it is over)."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self._struck.append(event)
        else:
            self._struck.append(time.perf_counter())

    @property
    def num_steps(self) -> int:
        """Steps between strikes so far; asks the device for nothing."""
        return max(0, len(self._struck) - 1)

    @property
    def seconds(self) -> list[float]:
        """Of each step between two strikes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [a.elapsed_time(b) / 1000 for a, b in zip(self._struck, self._struck[1:], strict=False)]
        return [b - a for a, b in zip(self._struck, self._struck[1:], strict=False)]
