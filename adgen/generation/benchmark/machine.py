"""What the machine can do: the speeds that the roofline is made of, measured where and when the engine runs."""

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adgen.generation.linears import PackedLinear, can_pack
from adgen.generation.timings import now
from adgen.model.device import computing_dtype

_REPEATS = 3  # the best counts: a neighbour on the machine only ever makes it slower
_GEMV_COLUMNS = 4096


@dataclass(frozen=True)
class Rates:
    """What a roofline is made of, measured. GB are 1e9 bytes."""

    read_gb_s: float
    """Reading alone, the faster of a sum and a matrix-vector product: decoding reads weights and caches and writes next to
    nothing, so the roofline counts its bytes at this speed."""
    gflops: float
    """A square matrix product, 1e9 operations a second, in the dtype that computes: where a CPU widens the engine's to fp32, in
    fp32. The faster one counts where it has both, since an engine may widen what it likes."""


@dataclass(frozen=True)
class Machine(Rates):
    """The same, and speeds that a benchmark shows beside it."""

    copy_gb_s: float
    """y = x: bytes read plus bytes written."""
    triad_gb_s: float
    """y = a + s b: bytes read plus bytes written."""


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure now; about a CPU second. The buffer is many times the largest cache."""
    x = torch.ones(_buffer_size(device) // 4, device=device)
    matrix, vector = x.view(-1, _GEMV_COLUMNS), torch.ones(_GEMV_COLUMNS, device=device)
    reads = (lambda: x.sum(), lambda: torch.mv(matrix, vector))
    return Rates(max(_rate(read, x.nbytes, device) for read in reads), measure_gflops(device, dtype))


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure all now, in two CPU seconds."""
    return Machine(**asdict(measure_rates(device, dtype)), **_write_rates(device))


def _write_rates(device: torch.device) -> dict[str, float]:
    x, y, z = (torch.ones(_buffer_size(device) // 4, device=device) for _ in range(3))
    return {
        "copy_gb_s": _rate(lambda: y.copy_(x), 2 * x.nbytes, device),
        "triad_gb_s": _rate(lambda: torch.add(x, z, alpha=2.0, out=y), 3 * x.nbytes, device),
    }


def measure_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """1e9 operations a second of a square matrix product, by the fastest way that the engine has to make one."""
    dtypes = {computing_dtype(device, dtype), *((torch.float32,) if device.type == "cpu" else ())}
    with torch.inference_mode():
        return max(_product_rate(device, each) for each in dtypes)


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    ways = [lambda: torch.mm(a, b)]
    if can_pack(b):
        linear = PackedLinear(b, None, size)
        ways.append(lambda: linear(a))
    return max(_rate(way, 2 * size**3, device) for way in ways)


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def reset_peak(device: torch.device) -> None:
    """Count peak memory from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5", encoding="ascii")  # Linux: the peak resident size starts again at the present one


def peak_bytes(device: torch.device) -> int:
    """Most memory in use at once since `reset_peak`: allocated on a CUDA device, resident in this process otherwise (the
    whole process, its libraries and the model included; 0 where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _buffer_size(device: torch.device) -> int:
    """Bytes of one buffer."""
    return 2**30 if device.type == "cuda" else 2**28


def _rate(act: Callable[[], object], amount: int, device: torch.device) -> float:
    """1e9 of `amount` a second, the best of some runs after a warm one."""
    act()
    best, times = float("inf"), 16 if device.type == "cuda" else 1  # a fraction of a millisecond each, without the synchronization
    for _ in range(_REPEATS):
        started = now(device)
        for _ in range(times):
            act()
        best = min(best, now(device) - started)
    return times * amount / best / 1e9
