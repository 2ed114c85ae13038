"""The engine: any number of requests in, as many results out. It knows tensors and prompts, not Ray and not storage.

Which rows run together is decided here; what they do on the device is in `reading`, `titles` and `painting`.

With tensor_parallel > 1 every rank runs this same code on the same requests: the leader hands them out in `generate`, the
others sit in `serve_rank`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from adgen.config import Settings
from adgen.errors import ModelError, RunError, SettingsError
from adgen.generation.deepspeed_layers import wrap_decoder
from adgen.generation.generate import Request, Result, embed, embed_history, kept_history, read_title
from adgen.generation.layers import StepLayers
from adgen.generation.linears import WeightType, preparation, prepare_heads
from adgen.generation.memory_plan import CPU_SLOTS, MAX_VQ_PICTURES, plan_num_slots
from adgen.generation.painting import Painter
from adgen.generation.prompt import Prompter
from adgen.generation.rank_group import RankGroup
from adgen.generation.reading import continue_prompts, read_prompts, reading, require_room, show_products
from adgen.generation.requests import pack_requests, unpack_requests
from adgen.generation.sampling import SamplingSettings
from adgen.generation.slots import Slots
from adgen.generation.speculating import SpeculativePainter
from adgen.generation.timings import PhaseTimings
from adgen.generation.titles import TitleWriter
from adgen.model.checkpoint import load
from adgen.model.config import ModelConfig
from adgen.model.image_tokens import to_uint8
from adgen.model.uniadgen import UniAdGen

ENGINE_VERSION = "2"
"""Changes whenever the same request may give another creative; part of every fingerprint."""

log = logging.getLogger(__name__)

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]


class EngineSettings(Settings):
    """How the model runs. What it draws is not decided here (SamplingSettings), but dtype and num_slots may change the
    last bits of a logit, so both are recorded."""

    num_slots: int | None = Field(None, ge=1)
    """Creatives that are made at once; default what the device's memory holds (4 on a CPU). Fixed for a run, and halved when
    memory does not suffice after all."""
    dtype: DTypeName = "auto"
    """Of the weights and activations; auto is bfloat16 on a GPU and float32 on a CPU."""
    cache_dtype: Literal["same", "float8_e4m3fn"] = "same"
    """Of keys and values. float8 halves bf16's memory and traffic, and is not lossless."""
    weights: WeightType = "same"
    """Of the decoder's linears and the heads, through torchao; eight bits are not lossless."""
    drop_masked_history: bool = False
    """Leave out of the prompt the history tokens that the preference masks zeroed: 60% of them. Not lossless, since the
    fusion writes into their rows too."""
    speculation: int = Field(1, ge=1, le=16)
    """Image tokens that a step drafts and verifies; 1 draws them one by one. The distribution stays, the draws are others."""
    tensor_parallel: int = Field(1, ge=1)
    """Ranks that share one decoder; must divide the model's key/value heads."""
    deepspeed: bool = True
    """Run the decoder layers through DeepSpeed inference. Without it, or where it is not installed, one rank runs plainly."""
    timeout_seconds: float = Field(60, gt=0)
    """A rank that keeps the others waiting longer than this while they generate has failed."""
    start_timeout_seconds: float = Field(600, gt=0)
    """How long a rank that has loaded its model waits for the others."""

    def torch_dtype(self, device: str | torch.device) -> torch.dtype:
        """The dtype itself, on such a device."""
        if self.dtype == "auto":
            return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        return getattr(torch, self.dtype)

    def torch_cache_dtype(self, device: str | torch.device) -> torch.dtype:
        """The cache's dtype itself."""
        return self.torch_dtype(device) if self.cache_dtype == "same" else getattr(torch, self.cache_dtype)

    def slots_on(self, device: torch.device, config: ModelConfig, capacity: int) -> int:
        """num_slots, or what the device's memory holds when a conditional row has `capacity` tokens."""
        if self.num_slots is not None:
            return self.num_slots
        if device.type != "cuda":
            return CPU_SLOTS
        return self.slots_in(torch.cuda.get_device_properties(device).total_memory, config, capacity)

    def slots_in(self, memory_bytes: int, config: ModelConfig, capacity: int) -> int:
        """Slots for a CUDA device of so much memory."""
        dtypes = self.torch_dtype("cuda"), self.torch_cache_dtype("cuda")
        return plan_num_slots(config, capacity, memory_bytes, *dtypes, self.tensor_parallel)

    def trades(self) -> dict[str, str | bool | int]:
        """The options that change creatives for speed, where they are on: they belong to what a creative is made of."""
        options = {name: getattr(self, name) for name in ("cache_dtype", "weights", "drop_masked_history", "speculation")}
        return {name: value for name, value in options.items() if value != type(self).model_fields[name].default}


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
        self.num_halvings = 0
        self.num_calls = 0
        """Batches that the model has run."""
        self.num_generated = 0
        """Creatives made, dummy rows not counted."""
        self.timings = PhaseTimings()
        """Where the time went so far."""
        self.deepspeed = _wrap(model, settings, device)
        """Whether the layers really run through DeepSpeed."""
        self._model, self._prompter, self._group = model, prompter, group
        self._capacity = row_capacity(model.config, prompter, self.sampling)
        self.num_slots = self._plan_slots()
        """Slots in use now: as set or planned, halved by each `num_halvings`."""
        prepare = preparation(settings.weights, num_rows=2 * self.num_slots)
        self._layers = StepLayers(model.decoder, prepare)
        prepare_heads(model, prepare)
        model.image_tokenizer.to(memory_format=torch.channels_last)
        if group is not None:
            group.follow_leader(model.decoder.lm_head, model.image_head)
        self._negative = prompter.negative_prompt()
        self._slots: Slots | None = None

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
        self._group.send(*pack_requests(requests, self._agreement()))
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

    @torch.inference_mode()
    def _run(self, batch: Sequence[Request]) -> list[Result]:
        """One batch in full slots: read the prompts, write the titles, read them back, paint, decode.

        A short batch is filled with copies of its last row: the same kernels run whatever the number of rows, and a copy
        ends when its original does.
        """
        model, prompter, device = self._model, self._prompter, self._model.device
        rows = [*batch, *[batch[-1]] * (self.num_slots - len(batch))]
        slots = self._ready_slots()
        slots.start([request.seed for request in rows])
        with self.timings.measure("prefill", device):
            prompts = [prompter.title_prompt(request.facts) for request in rows]
            self._make_room(require_room(model.config, prompts, self.sampling))
            histories = [self._history(request) for request in rows]
            readings = [reading(model, prompt, *history) for prompt, history in zip(prompts, histories, strict=True)]
            hidden = read_prompts(self._layers, slots, readings)
            shown = show_products(model, slots, rows, self.sampling.control_strength)
        with self.timings.measure("title", device):
            written = self._writer.write(hidden)
            titles = [read_title(model, prompter, request, ids) for request, ids in zip(rows, written, strict=True)]
        with self.timings.measure("prefill", device):
            pictures = [prompter.picture_prompt(r.facts, t or "") for r, t in zip(rows, titles, strict=True)]
            self._make_room(max(map(len, pictures)) + model.config.image.tokens_per_picture)
            cached = [[*prompt.ids, *ids] for prompt, ids in zip(prompts, written, strict=True)]
            readings = [reading(model, prompt, *history) for prompt, history in zip(pictures, histories, strict=True)]
            hidden = continue_prompts(self._layers, slots, cached, pictures, readings)
        with self.timings.measure("picture", device):
            codes = self._painter.paint(torch.cat((hidden, self._negative_end.expand_as(hidden))), shown).clone()
        with self.timings.measure("vq", device):
            painted = self._pixels(codes[: len(batch)])
        self.num_calls += 1
        self.num_generated += len(batch)
        self.timings.title_steps += max(map(len, written))
        self.timings.picture_steps += self._painter.num_steps
        return [
            Result(title or "", title is not None, row, picture, self.num_slots)
            for title, row, picture in zip(titles, codes.cpu(), painted, strict=False)
        ]

    def _history(self, request: Request) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Its embedded history (R, D), and which rows of it are read (None: all)."""
        arguments = (self._model, self._prompter, request, self.sampling.preference_noise)
        return embed_history(*arguments), kept_history(*arguments) if self.settings.drop_masked_history else None

    def _pixels(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (n, N) -> pictures (n, H, W, 3) uint8 on the CPU; always as many at once, so that bytes repeat."""
        some = min(self.num_slots, MAX_VQ_PICTURES)
        pictures = []
        for chunk in codes.split(some):
            full = torch.cat((chunk, chunk[-1:].expand(some - len(chunk), -1)))
            pictures.append(to_uint8(self._model.image_tokenizer.decode(full))[: len(chunk)].cpu())
        return torch.cat(pictures)

    def _ready_slots(self) -> Slots:
        """The slots' memory, made when it is first needed and after each halving."""
        if self._slots is None:
            model, settings = self._model, self.settings
            cache_dtype = settings.torch_cache_dtype(model.device)
            slots = Slots(
                model.config, self._layers, self.num_slots, self._capacity, model.dtype, cache_dtype, settings.speculation
            )
            self._negative_end = slots.share_negative_prompt(embed(model, self._negative, None))
            self._slots = slots
            self._capture_steps()
        return self._slots

    def _capture_steps(self) -> None:
        """The steps over the slots as they lie in memory. Ranks exchange sums inside a step, which stays uncaptured."""
        parts = (self._layers, self._slots, self.sampling, self._group is None)
        self._writer = TitleWriter(self._model, self._prompter, *parts)
        window = self.settings.speculation
        self._painter = Painter(self._model, *parts) if window == 1 else SpeculativePainter(self._model, *parts[:3], window)

    def _make_room(self, capacity: int) -> None:
        """A prompt longer than was planned for moves the caches; the captured step must be captured anew."""
        if self._slots.make_room(capacity):
            self._capacity = capacity
            self._capture_steps()

    def _plan_slots(self) -> int:
        """As set, else what this device's memory holds; the smallest rank's number where there are several."""
        num_slots = self.settings.slots_on(self._model.device, self._model.config, self._capacity)
        return num_slots if self._group is None else self._group.smallest(num_slots)

    def _halve(self, reason: str) -> None:
        self.num_slots //= 2
        self._slots = self._writer = self._painter = self._negative_end = None
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


def row_capacity(config: ModelConfig, prompter: Prompter, sampling: SamplingSettings) -> int:
    """Tokens that a conditional row may come to hold: the longest prompt, its title and its picture."""
    needed = prompter.max_prompt_tokens(config.history_items) + sampling.max_title_tokens + config.image.tokens_per_picture
    return min(needed, config.decoder.max_positions)


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
            engine._generate_together(unpack_requests(document, tensors))
        except ModelError as error:
            log.info("the leader's caller has been told: %s", error)


def _wrap(model: UniAdGen, settings: EngineSettings, device: str | torch.device | None) -> bool:
    """Bring the model into its dtype and place, through DeepSpeed if it is wanted and there."""
    device = torch.device(device or model.device)
    dtype = settings.torch_dtype(device)
    if settings.deepspeed:
        try:
            wrap_decoder(model, dtype, settings.tensor_parallel, device)
            return True
        except ImportError as error:
            log.warning("DeepSpeed is not installed, the decoder runs without it (%s)", error)
    if settings.tensor_parallel > 1:
        raise SettingsError(f"engine.tensor_parallel {settings.tensor_parallel} needs DeepSpeed, which is off or not installed")
    model.to(device=device, dtype=dtype).requires_grad_(False)
    return False
