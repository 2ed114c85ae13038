"""The engine: any number of requests in, as many results out. It knows tensors and prompts, not Ray and not storage.

Which rows run together is decided here; what they do on the device is in `batch`.

With tensor_parallel > 1 every rank runs this same code on the same requests: the leader hands them out in `generate`, the
others sit in `serve_rank`.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar, get_args

import torch

from adgen.errors import ModelError, RunError, SettingsError
from adgen.generation.batch import BatchRunner
from adgen.generation.deepspeed_layers import place_model
from adgen.generation.device_check import Finding, check_attention, check_capture, check_draw, failed_kernels
from adgen.generation.engine_settings import ENGINE_VERSION, EngineSettings, KernelName
from adgen.generation.generate import Request, Result, TitleResult
from adgen.generation.layers import StepLayers
from adgen.generation.linears import preparation, prepare_heads
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.prefill import check_request
from adgen.generation.prompt import Prompter
from adgen.generation.rank_group import RankGroup
from adgen.generation.requests import pack_requests, unpack_requests
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots_per_device import row_capacity
from adgen.generation.style_agreement import style_agreements
from adgen.generation.timings import PhaseTimings
from adgen.model.config import ModelConfig
from adgen.model.uniadgen import UniAdGen

log = logging.getLogger(__name__)
T = TypeVar("T")


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
        check: bool | None = None,
    ):
        """group: this rank's, when settings.tensor_parallel > 1. device: where to run; None is where the model is. check: compare
        kernels with the plain path first (`device_check`); None: on a CUDA device.

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
        self.num_halvings = 0
        self.num_calls = 0
        """Batches that the model has run."""
        self.num_generated = 0
        """Creatives made, dummy rows not counted."""
        self.timings = PhaseTimings()
        """Seconds of each phase so far."""
        self.deepspeed = place_model(model, settings, device)
        """Whether the layers really run through DeepSpeed."""
        self._model, self._prompter, self._group = model, prompter, group
        self._capacity = row_capacity(model.config, prompter, self.sampling)
        self.num_slots = self._plan_slots()
        """Slots in use now: as set or planned, halved by each `num_halvings`."""
        prepare = preparation(settings.weights, num_rows=2 * self.num_slots)
        self._layers = StepLayers(model.decoder, prepare, float8_cache=settings.cache_dtype != "same")
        prepare_heads(model, prepare)
        model.image_tokenizer.to(memory_format=torch.channels_last)
        if group is not None:
            group.follow_leader(model.decoder.lm_head, model.image_head)
        self._runner: BatchRunner | None = None
        self.switched_off: frozenset[str] = frozenset(settings.switch_off)
        """Kernels that are not used: as set, and those that failed their check."""
        self.findings: list[Finding] = []
        """What the check found; nothing where there was none."""
        if self.device.type == "cuda" if check is None else check:
            self.check()

    @property
    def model_config(self) -> ModelConfig:
        """Sizes of the model."""
        return self._model.config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self._model.dtype

    @property
    def num_negative_tokens(self) -> int:
        """Length of the prompt that the unconditional rows share."""
        return len(self._prompter.negative_prompt())

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """A result for each request, in order, in batches of num_slots. Each result says how many rows ran with it, and how often
        its title and picture were drawn again (`Request.check_title`, `sampling.attempts`).

        ModelError: a request that this model cannot take; the engine stays usable. RunError: out of memory with one slot,
        or a rank of the group died; the engine is then of no further use.
        """
        if self._group is None:
            return self._generate(requests)
        if not self._group.leads:
            raise RunError(f"tensor-parallel {self._group.name}: only the leader takes requests, others run serve_rank")
        if not requests:
            return []
        self._group.send(*pack_requests(requests, self._agreement()))
        return self._generate_together(requests)

    def titles(self, requests: Sequence[Request]) -> list[TitleResult]:
        """The title that `generate` would give each request, with no picture. ModelError as there; an engine of one rank."""
        return self._in_batches(requests, BatchRunner.titles)

    def check(self) -> None:
        """Compare each kernel with the plain path, and switch off, with a warning, what differs on any rank."""
        while (found := self._compared()) is None:
            self._halve("in the check of the kernels")
        self.findings, failed = found, failed_kernels(found, self.device)
        if self._group is not None:
            failed = {name for name in get_args(KernelName) if not self._group.smallest(int(name not in failed))}
        self.switched_off |= failed
        if failed:
            self._runner = None

    def style_agreements(self, requests: Sequence[Request], results: Sequence[Result]) -> list[float | None]:
        """How well each result's picture fits the style of its request's clicks: `adgen.generation.style_agreement`."""
        return style_agreements(self._model, requests, results)

    def close(self) -> None:
        """Dismiss the other ranks, if there are any. The engine is of no further use."""
        if self._group is not None:
            if self._group.leads and self._group.is_open:
                self._group.send({"stop": True})
            self._group.close()

    def _compared(self) -> list[Finding] | None:
        """Of attention, draw and captured step, those that are not switched off already, on the shapes that the engine runs with.
        None: memory does not suffice for its slots. RunError: nor for fewer."""
        try:
            return self._compare()
        except torch.OutOfMemoryError as error:
            if self.settings.tensor_parallel > 1 or self.num_slots == 1:
                raise RunError(f"out of memory with engine.num_slots {self.num_slots}: lower it ({error})") from error
            return None

    def _compare(self) -> list[Finding]:
        device, dtype, off, slots = self.device, self.dtype, self.switched_off, self.num_slots
        found: list[Finding | None] = []
        if "attention" not in off:
            found.append(check_attention(self._layers, slots, dtype, self.settings.torch_cache_dtype(device), device))
        if "draw" not in off:
            found += check_draw(slots, self.model_config.image.codebook_size, self.sampling, dtype, device)
        off = off | {each.kernel for each in found if each and each.trouble}
        if device.type == "cuda" and self.settings.tensor_parallel == 1 and not off & {"attention", "captured step"}:
            found.append(check_capture(self._ready_runner()))  # last: until now the slots' memory is free for the comparisons
        return [each for each in found if each]

    def _generate(self, requests: Sequence[Request]) -> list[Result]:
        return self._in_batches(requests, BatchRunner.run)

    def _in_batches(self, requests: Sequence[Request], act: Callable[[BatchRunner, Sequence[Request]], list[T]]) -> list[T]:
        for request in requests:
            check_request(self._model, self._prompter, request, self.sampling)
        results: list[T] = []
        while len(results) < len(requests):
            batch = requests[len(results) : len(results) + self.num_slots]
            try:
                results += self._run(batch, act)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if self._group is not None or self.num_slots == 1:
                    raise RunError(
                        f"out of memory with engine.num_slots {self.num_slots} on {self.settings.tensor_parallel} rank(s): lower "
                        f"num_slots, raise tensor_parallel, or take a smaller dtype ({error})"
                    ) from error
                out_of_memory = str(error)
            else:
                continue
            # Outside the handler: its traceback keeps the failed batch's tensors alive.
            self._halve(out_of_memory)
        return results

    def _run(self, batch: Sequence[Request], act: Callable[[BatchRunner, Sequence[Request]], list[T]]) -> list[T]:
        """One batch in full slots. A short one is filled with copies of its last row: the same kernels run whatever the
        number of rows, and a copy ends when its original does."""
        results = act(self._ready_runner(), [*batch, *[batch[-1]] * (self.num_slots - len(batch))])[: len(batch)]
        self.num_calls += 1
        self.num_generated += len(batch)
        return results

    def _ready_runner(self) -> BatchRunner:
        """The slots and what runs over them; made when first needed, and anew after a halving."""
        if self._runner is None:
            parts = (self._model, self._prompter, self._layers)
            sizes = self.num_slots, self._capacity
            agree = self._group.as_leader if self._group else list
            more = self.settings, self.sampling, self.timings, agree
            self._runner = BatchRunner(*parts, *sizes, *more, self.switched_off)
        return self._runner

    def _plan_slots(self) -> int:
        """As set, else what this device's memory holds; the smallest rank's number where there are several."""
        num_slots = self.settings.slots_on(self._model.device, self._model.config, self._capacity)
        return num_slots if self._group is None else self._group.smallest(num_slots)

    def _halve(self, reason: str) -> None:
        self.num_slots //= 2
        self._runner = None
        self.num_halvings += 1
        log.warning("out of memory, going on with %d slots: %s", self.num_slots, reason)
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _generate_together(self, requests: Sequence[Request]) -> list[Result]:
        refused = None
        with self._group.all_or_none("generating"):
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
    directory: ModelDirectory,
    settings: EngineSettings,
    sampling: SamplingSettings | None = None,
    device: str = "cpu",
) -> Engine:
    """One rank of a tensor-parallel engine, in a process of its own; returns when all ranks have loaded the model and connected.

    Rank 0 then calls `generate` and at last `close`; the others call `serve_rank`. master_port is free on rank 0's host,
    master_address that host as all ranks reach it. device "cuda" is this process's current device.
    """
    model = directory.load()  # in host memory: only this rank's share of the layers goes to the device
    timeouts = settings.timeout_seconds, settings.start_timeout_seconds
    group = RankGroup(rank, world_size, master_address, master_port, *timeouts, device)
    with group.all_or_none("sharing out the layers"):
        return Engine(model, directory.prompter, settings, sampling, group, device)


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
        with group.all_or_none("comparing settings"):
            if document["agreement"] != engine._agreement():
                raise SettingsError(f"tensor-parallel {group.name} was started with other settings or another model than rank 0")
        try:
            engine._generate_together(unpack_requests(document, tensors))
        except ModelError as error:
            log.info("a request was refused, which the leader reports: %s", error)


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out: CUDA has a type for it, CPUs a message, and a capture that it interrupts an error of its own."""
    if error is None:
        return False
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error) or _out_of_memory(error.__context__)
