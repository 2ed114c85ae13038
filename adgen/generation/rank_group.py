"""The ranks that share one decoder: how they connect, how the leader (rank 0) hands out work, and how one failure ends all.

Work travels as safetensors with a JSON document inside, so nothing is ever unpickled. Two process groups: the default
one carries the layers' sums and has a short timeout; waiting for work may take hours, so it has a group of its own.
"""

import datetime
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from adgen.errors import RunError

LEADER = 0
_IDLE = datetime.timedelta(days=7)
_DOCUMENT = "document"


class RankGroup:
    """A tensor-parallel group, seen from one of its ranks. One a process."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        master_address: str,
        master_port: int,
        timeout_seconds: float,
        start_timeout_seconds: float,
        device: str = "cpu",
    ):
        """Connect to the other ranks; returns when all are there. RunError: they are not, after start_timeout_seconds.

        timeout_seconds: how long a rank waits for the others while they generate. device "cuda" is the current one.
        """
        self.rank, self.world_size = rank, world_size
        self.name = f"rank {rank} of {world_size} at {master_address}:{master_port}"
        self.is_open = True
        with self.all_or_none("connecting to the other ranks"):
            store = _start_barrier(rank, world_size, master_address, master_port, datetime.timedelta(seconds=start_timeout_seconds))
            dist.init_process_group(
                "nccl" if torch.device(device).type == "cuda" else "gloo",
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=datetime.timedelta(seconds=timeout_seconds),
            )
            self._idle = dist.new_group(backend="gloo", timeout=_IDLE)

    @property
    def leads(self) -> bool:
        """Whether this rank hands out the work."""
        return self.rank == LEADER

    def send(self, document: dict, tensors: Sequence[Tensor] = ()) -> None:
        """Give all followers a JSON document and tensors; the leader only."""
        parts = {str(index): tensor.cpu().contiguous() for index, tensor in enumerate(tensors)}
        parts[_DOCUMENT] = _bytes_tensor(json.dumps(document).encode())
        packed = _bytes_tensor(safetensors.torch.save(parts))
        with self.all_or_none("handing out work"):
            dist.broadcast(torch.tensor([len(packed)]), LEADER, group=self._idle)
            dist.broadcast(packed, LEADER, group=self._idle)

    def receive(self) -> tuple[dict, list[Tensor]]:
        """What the leader sends next; waits for it."""
        with self.all_or_none("waiting for work"):
            dist.broadcast(size := torch.zeros(1, dtype=torch.int64), LEADER, group=self._idle)
            dist.broadcast(packed := torch.empty(int(size), dtype=torch.uint8), LEADER, group=self._idle)
        parts = safetensors.torch.load(packed.numpy().tobytes())
        document = json.loads(parts.pop(_DOCUMENT).numpy().tobytes())
        return document, [parts[str(index)] for index in range(len(parts))]

    def smallest(self, number: int) -> int:
        """The smallest of the ranks' numbers; every rank must call this."""
        with self.all_or_none("comparing numbers"):
            dist.all_reduce(least := torch.tensor([number]), dist.ReduceOp.MIN, group=self._idle)
        return int(least)

    def as_leader(self, flags: Sequence[bool]) -> list[bool]:
        """The leader's flags, as many as ours; every rank must call this, inside `all_or_none`."""
        dist.broadcast(said := torch.tensor(flags, dtype=torch.uint8), LEADER, group=self._idle)
        return said.bool().tolist()

    def follow_leader(self, *modules: nn.Module) -> None:
        """Make every rank see the leader's outputs of these modules.

        All ranks draw their tokens themselves. An all-reduce gives all of them the same bytes, but what follows it may
        still round differently where thread counts or kernel choices differ, and one different token would leave ranks
        waiting for sums that never come. With the leader's logits the ranks cannot differ.
        """

        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            output = output.contiguous()
            dist.broadcast(output, LEADER)
            return output

        for module in modules:
            module.register_forward_hook(hook)

    @contextmanager
    def all_or_none(self, doing: str) -> Iterator[None]:
        """Run the block on all ranks or on none: an error of this rank closes its connections, so that the others fail
        immediately instead of waiting; the failure of another rank becomes a RunError that names this one."""
        if not self.is_open:
            raise RunError(f"tensor-parallel {self.name} is closed or has failed: start all ranks of the group again")
        try:
            yield
        except RuntimeError as error:  # gloo and NCCL raise no narrower type
            self.close()
            reason = str(error).strip().splitlines()[0]
            raise RunError(
                f"tensor-parallel {self.name} failed while {doing}: {type(error).__name__}: {reason}. If another rank's log has "
                "an error, that one came first; if not, that rank was killed or hangs. Start all ranks of the group again"
            ) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the group; safe to call twice."""
        if self.is_open and dist.is_initialized():
            dist.destroy_process_group()
        self.is_open = False


def _start_barrier(rank: int, world_size: int, address: str, port: int, timeout: datetime.timedelta) -> dist.TCPStore:
    """Wait until all ranks are there: they may take different times to load the model, and the process group that follows
    has a short timeout."""
    store = dist.TCPStore(address, port, world_size, is_master=rank == LEADER, timeout=timeout, wait_for_workers=False)
    if store.add("here", 1) == world_size:
        store.set("all_here", b"1")
    store.wait(["all_here"], timeout)
    return store


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
