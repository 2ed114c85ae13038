"""The engine: any number of requests in, as many results out. It knows tensors and prompts, not Ray and not storage.

With tensor_parallel > 1 every rank runs this same code on the same requests: the leader hands them out in `generate`, the
others sit in `serve_rank`.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from adgen.config import Settings
from adgen.errors import ModelError, RunError, SettingsError
from adgen.generation.deepspeed_layers import wrap_decoder
from adgen.generation.generate import Request, Result, generate
from adgen.generation.prompt import Prompter
from adgen.generation.rank_group import RankGroup
from adgen.generation.sampling import SamplingSettings
from adgen.generation.timings import PhaseTimings
from adgen.model.checkpoint import load
from adgen.model.uniadgen import UniAdGen

ENGINE_VERSION = "1"
"""Changes whenever the same request may give another creative; part of every fingerprint."""

log = logging.getLogger(__name__)


class EngineSettings(Settings):
    """How the model runs. What it draws is not decided here (SamplingSettings), but dtype and num_slots may change the
    last bits of a logit, so both are recorded."""

    num_slots: int = Field(4, ge=1)
    """Creatives that are made at once. Fixed for a run; halved when memory does not suffice."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights and the caches."""
    tensor_parallel: int = Field(1, ge=1)
    """Ranks that share one decoder; must divide the model's key/value heads."""
    deepspeed: bool = True
    """Run the decoder layers through DeepSpeed inference. Without it, or where it is not installed, one rank runs plainly."""
    timeout_seconds: float = Field(60, gt=0)
    """A rank that keeps the others waiting longer than this while they generate has failed."""
    start_timeout_seconds: float = Field(600, gt=0)
    """How long a rank that has loaded its model waits for the others."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)


class Engine:
    """A model that is ready to generate. Takes the model over: its dtype and its layers change in place."""

    def __init__(
        self,
        model: UniAdGen,
        prompter: Prompter,
        settings: EngineSettings | None = None,
        sampling: SamplingSettings | None = None,
        group: RankGroup | None = None,
        device: str | torch.device | None = None,
    ):
        """group: this rank's, when settings.tensor_parallel > 1. device: where to run; None is where the model is.

        SettingsError: tensor_parallel without its group or without DeepSpeed, or more ranks than the heads allow.
        """
        settings = settings or EngineSettings()
        if settings.tensor_parallel != (group.world_size if group else 1):
            raise SettingsError(
                f"engine.tensor_parallel is {settings.tensor_parallel}, but this engine has {group.world_size if group else 1} "
                "rank(s): start each rank with start_rank"
            )
        self.settings = settings
        self.sampling = sampling or SamplingSettings()
        self.num_slots = settings.num_slots
        """Slots in use now: settings.num_slots, halved by each `num_halvings`."""
        self.num_halvings = 0
        self.num_calls = 0
        """Batches that the model has run."""
        self.num_generated = 0
        """Creatives made, dummy rows not counted."""
        self.timings = PhaseTimings()
        """Of all batches so far, dummy rows' time included."""
        self.deepspeed = _wrap(model, settings, device)
        """Whether the layers really run through DeepSpeed."""
        self._model, self._prompter, self._group = model, prompter, group
        if group is not None:
            group.follow_leader(model.decoder.lm_head, model.image_head)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """A result for each request, in order, in batches of num_slots. Each result says how many rows ran with it.

        ModelError: a request that this model cannot take; the engine stays usable. RunError: out of memory with one slot,
        or a rank of the group died; the engine is then of no further use.
        """
        if self._group is None:
            return self._generate(requests)
        if not self._group.leads:
            raise RunError(f"tensor-parallel {self._group.name}: only the leader takes requests, others run serve_rank")
        if not requests:
            return []
        self._group.send(*_pack(requests, self._agreement()))
        return self._generate_together(requests)

    def close(self) -> None:
        """Dismiss the other ranks, if there are any. The engine is of no further use."""
        if self._group is not None:
            if self._group.leads and self._group.is_open:
                self._group.send({"stop": True})
            self._group.close()

    def _generate(self, requests: Sequence[Request]) -> list[Result]:
        results: list[Result] = []
        while len(results) < len(requests):
            batch = requests[len(results) : len(results) + self.num_slots]
            try:
                results += self._run(batch)
            except torch.OutOfMemoryError as error:
                if self._group is not None or self.num_slots == 1:
                    raise RunError(
                        f"out of memory with engine.num_slots {self.num_slots} on {self.settings.tensor_parallel} rank(s): lower "
                        f"num_slots, raise tensor_parallel, or take a smaller dtype ({error})"
                    ) from error
                out_of_memory = str(error)
            else:
                continue
            # Outside the handler, whose traceback keeps the failed batch's tensors alive.
            self._halve(out_of_memory)
        return results

    def _run(self, batch: Sequence[Request]) -> list[Result]:
        """One batch in full slots. A short one is filled with copies of its last row: the same kernels run whatever the
        number of rows, and a copy ends when its original does."""
        slots = [*batch, *[batch[-1]] * (self.num_slots - len(batch))]
        results = generate(self._model, self._prompter, slots, self.sampling, self.timings)[: len(batch)]
        self.num_calls += 1
        self.num_generated += len(batch)
        return results

    def _halve(self, reason: str) -> None:
        self.num_slots //= 2
        self.num_halvings += 1
        log.warning("out of memory, going on with %d slots: %s", self.num_slots, reason)
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _generate_together(self, requests: Sequence[Request]) -> list[Result]:
        refused = None
        with self._group.failing_together("generating"):
            try:
                return self._generate(requests)
            except ModelError as error:
                # Found before any layer runs, and on every rank alike: no rank waits for another.
                refused = error
        raise refused

    def _agreement(self) -> str:
        """What must be the same on every rank."""
        return f"{ENGINE_VERSION} {self.settings.digest()} {self.sampling.digest()} {self._model.config.digest()}"


def start_rank(
    rank: int,
    world_size: int,
    master_address: str,
    master_port: int,
    model_dir: str | Path,
    settings: EngineSettings,
    sampling: SamplingSettings | None = None,
    device: str = "cpu",
) -> Engine:
    """One rank of a tensor-parallel engine, in a process of its own; returns when all ranks have loaded and met.

    Rank 0 then calls `generate` and at last `close`; the others call `serve_rank`. master_port is free on rank 0's host,
    master_address that host as all ranks reach it. device "cuda" is this process's current device.
    """
    model = load(model_dir)  # in host memory: only this rank's share of the layers goes to the device
    prompter = Prompter.load(model_dir, model.config)
    timeouts = settings.timeout_seconds, settings.start_timeout_seconds
    group = RankGroup(rank, world_size, master_address, master_port, *timeouts, device)
    with group.failing_together("sharing out the layers"):
        return Engine(model, prompter, settings, sampling, group, device)


def serve_rank(engine: Engine) -> int:
    """Generate whatever the leader is asked for, until it closes; the number of creatives made. RunError: a rank died, or
    was started with other settings."""
    group = engine._group
    if group is None or group.leads:
        raise RunError("serve_rank is for the ranks other than 0 of a tensor-parallel engine")
    while True:
        document, tensors = group.receive()
        if document.get("stop"):
            group.close()
            return engine.num_generated
        with group.failing_together("comparing settings"):
            if document["agreement"] != engine._agreement():
                raise SettingsError(f"tensor-parallel {group.name} was started with other settings or another model than rank 0")
        try:
            engine._generate_together(_unpack(document, tensors))
        except ModelError as error:
            log.info("the leader's caller has been told: %s", error)


def _wrap(model: UniAdGen, settings: EngineSettings, device: str | torch.device | None) -> bool:
    """Bring the model into its dtype and place, through DeepSpeed if it is wanted and there."""
    if settings.deepspeed:
        try:
            wrap_decoder(model, settings.torch_dtype, settings.tensor_parallel, device)
            return True
        except ImportError as error:
            log.warning("DeepSpeed is not installed, the decoder runs without it (%s)", error)
    if settings.tensor_parallel > 1:
        raise SettingsError(f"engine.tensor_parallel {settings.tensor_parallel} needs DeepSpeed, which is off or not installed")
    model.to(device=device or model.device, dtype=settings.torch_dtype).requires_grad_(False)
    return False


# -- requests between ranks ----------------------------------------------------------------------------------------------


def _pack(requests: Sequence[Request], agreement: str) -> tuple[dict, list[torch.Tensor]]:
    """Requests as plain values, with the place of each tensor in the list beside them."""
    rows, tensors = [], []
    for request in requests:
        row = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
        for name, value in row.items():
            if isinstance(value, torch.Tensor):
                row[name] = {"tensor": len(tensors)}
                tensors.append(value)
        rows.append(row)
    return {"agreement": agreement, "requests": rows}, tensors


def _unpack(document: dict, tensors: list[torch.Tensor]) -> list[Request]:
    def value(stored):
        if isinstance(stored, dict):
            return tensors[stored["tensor"]]
        return tuple(stored) if isinstance(stored, list) else stored

    return [Request(**{name: value(stored) for name, stored in row.items()}) for row in document["requests"]]
