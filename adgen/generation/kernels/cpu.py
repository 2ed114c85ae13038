"""`decode.c` and `layers.c` from Python: compiled once a machine with the C compiler at hand, called through ctypes.

A second of `cc` rather than a minute of a template library, no torch headers, and one OpenMP runtime: torch's own, which is
loaded already. Where there is no compiler `library()` is None, and torch does the work.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

# Reassociation lets sums vectorise. -ffast-math is avoided: linked into a library it changes how its whole process rounds.
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math",
          "-fassociative-math", "-fno-signed-zeros", "-ffinite-math-only")  # fmt: skip
_SOURCES = ("decode.h", "decode.c", "layers.c")
CACHE_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float8_e4m3fn: 3}
MAX_HEAD_SIZE = 256

_POINTERS = ("qkv", "cosine", "sine", "out", "keys", "values", "prefix_keys", "prefix_values", "lengths", "active")
_SIZES = ("rows", "heads", "groups", "width", "capacity", "num_shared")


class Attention(ctypes.Structure):
    """The arguments of one attention, as `decode.h` declares them."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("scale", ctypes.c_float),
    )


class Linear(ctypes.Structure):
    """A linear over panels, as `layers.c` declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("panels", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "gated")),
    )


class Layer(ctypes.Structure):
    """A decoder layer and the attention of each half of its rows, as `layers.c` declares it."""

    _fields_ = (
        *((name, Linear) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("input_norm", "mlp_norm", "halves")),
        *((name, ctypes.c_float) for name in ("input_eps", "mlp_eps")),
    )


_STEP_POINTERS = ("layers", "embeds", "additions", "final_norm", "x", "normed", "qkv", "attended", "inner", "out")
_STEP_SIZES = ("num_layers", "num_halves", "cache_type", "rows", "size", "interval")


class Step(ctypes.Structure):
    """One step of all layers, as `layers.c` declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _STEP_POINTERS),
        *((name, ctypes.c_int64) for name in _STEP_SIZES),
        ("final_eps", ctypes.c_float),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had; says once why."""
    try:
        loaded = ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("no C kernels on this machine, decoding on the CPU will be slower: %s", _first_line(error))
        return None
    loaded.adgen_attend.argtypes = [ctypes.POINTER(Attention), ctypes.c_int64, ctypes.c_int]
    pointer, size, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    loaded.adgen_draw.argtypes = [pointer, pointer, pointer, pointer, size, real, real, size, size, pointer]
    loaded.adgen_linear.argtypes = [ctypes.POINTER(Linear), pointer, size, pointer]
    loaded.adgen_step.argtypes = [ctypes.POINTER(Step)]
    loaded.adgen_panel.restype = size
    loaded.adgen_draw.restype = loaded.adgen_linear.restype = loaded.adgen_step.restype = None
    return loaded


def library_name() -> str:
    """Which kernels these are, by a hash of source, compiler and processor; `none` where torch does their work."""
    return _compiled().stem if library() else "none"


def attend(branches: ctypes.Array, cache_type: torch.dtype) -> None:
    """One layer's attention over the rows of an array of `Attention`, no two of which share a cache; in place."""
    if library().adgen_attend(branches, len(branches), CACHE_TYPES[cache_type]):
        raise ValueError(f"head size {branches[0].width} is over {MAX_HEAD_SIZE}")


def panel_width() -> int:
    """Outputs side by side in a panel of weights, by this processor's vectors."""
    return library().adgen_panel()


def linear(arguments: Linear, x: Tensor, out: Tensor) -> None:
    """out (..., outputs) of x (..., inputs), fp32 and contiguous both."""
    library().adgen_linear(arguments, x.data_ptr(), x.numel() // arguments.inputs, out.data_ptr())


def step(arguments: Step) -> None:
    """One step of all layers."""
    library().adgen_step(arguments)


def draw(logits: Tensor, seeds: Tensor, steps: Tensor, stream: int, weight: float, temperature: float, codes: Tensor) -> None:
    """Codes (B,) from logits (2B, V), the conditional rows first: `sample(guided(...))` with the row's own noise."""
    rows, size = len(codes), logits.shape[1]
    logits = logits.float().contiguous()
    unconditional = logits.data_ptr() + rows * size * logits.element_size()
    library().adgen_draw(
        logits.data_ptr(), unconditional, seeds.data_ptr(), steps.data_ptr(), stream, weight, temperature, rows, size,
        codes.data_ptr(),
    )  # fmt: skip


def _compiled() -> Path:
    """The shared object of these sources, compiler and processor; compiled when it is not there yet."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise FileNotFoundError("no C compiler (cc)")
    sources = {name: (resources.files(__package__) / name).read_bytes() for name in _SOURCES}
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    name = hashlib.sha256(b"\0".join((*sources.values(), " ".join(_FLAGS).encode(), version, _processor()))).hexdigest()[:24]
    folder = _cache_folder()
    for known in folder.glob(f"decode-{name}-*.so"):
        # Its name ends with its size: to load what a full disk or a power cut has left of a library kills the process.
        if known.stat().st_size == int(known.stem.rsplit("-", 1)[1]):
            return known
        known.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        for file, text in sources.items():
            (Path(fresh) / file).write_bytes(text)
        made, given = Path(fresh) / "decode.so", [str(Path(fresh) / file) for file in _SOURCES if file.endswith(".c")]
        done = subprocess.run([compiler, *_FLAGS, *given, "-o", str(made)], capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise OSError(f"{compiler}: {done.stderr.strip()}")
        return made.replace(folder / f"decode-{name}-{made.stat().st_size}.so")


def _cache_folder() -> Path:
    """Ours alone: what lies there is loaded as code."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "adgen" / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} belongs to somebody else, or others may write there")
    return folder


def _processor() -> bytes:
    """What -march=native looks at: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})).encode()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
