"""Products with matrices of 16, 8 or 4 bits, and whole steps of decoding, as compiled code (`native.cpp`).

A step of decoding is some five hundred small operations; each called from Python costs more than it computes. The code
is compiled when it is first wanted, by the C++ compiler that is there, for the processor that is there, and kept among
the user's caches. Where there is none, or where CHATLOOM_NATIVE=0, everything is computed by torch (`quantised`).

The layouts of matrices are made and read back here; `native.cpp` says what they are.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP = 32  # inputs that share a scale; by which all are padded
LANES = 16  # outputs side by side
_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = ["-std=gnu++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
_ATTEMPTS: tuple[list[str], ...] = (["-march=native", "-fopenmp"], ["-mcpu=native", "-fopenmp"], ["-march=native"], [])


class Matrix(Structure):
    """As in `native.cpp`, and so the others."""

    _fields_ = (
        *((name, c_int32) for name in ("bits", "inputs", "outputs", "tiles")),
        *((name, c_void_p) for name in ("codes", "scales", "bias")),
    )


class Layer(Structure):  # noqa: D101
    _fields_ = (
        *((name, c_void_p) for name in ("attention_norm", "feedforward_norm", "query_norm", "key_norm")),
        *((name, Matrix) for name in ("joined", "output", "gate_up", "down")),
        ("window", c_int32),
        *((name, c_void_p) for name in ("cosines", "sines")),
    )


class Network(Structure):  # noqa: D101
    _fields_ = (
        *((name, c_int32) for name in ("layers", "width", "heads", "groups", "head_width", "inner", "turned")),
        *((name, c_float) for name in ("epsilon", "scale")),
        ("layer", POINTER(Layer)),
        ("final_norm", c_void_p),
        ("head", Matrix),
    )


class Step(Structure):  # noqa: D101
    _fields_ = (
        *((name, c_int32) for name in ("threads", "tokens", "chunks", "most", "due")),
        *((name, c_void_p) for name in ("x", "positions", "first", "count", "table", "keys", "values")),
        ("blocks", c_int64),
        *((name, c_void_p) for name in ("ends", "logits")),
    )


def available(device: torch.device) -> bool:
    """Whether this can be had for tensors there."""
    return device.type == "cpu" and os.environ.get("CHATLOOM_NATIVE") != "0" and _library() is not None


def product(matrix: Matrix, rows: Tensor) -> Tensor:
    """`rows` (N, inputs) times the matrix: (N, outputs) in fp32."""
    library = _library()
    assert library is not None
    more = matrix.inputs - rows.shape[1]
    rows = (F.pad(rows, (0, more)) if more else rows).float().contiguous()
    output = torch.empty(len(rows), matrix.outputs, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
    library.chatloom_product(
        ctypes.byref(matrix), rows.data_ptr(), len(rows), output.data_ptr(), torch.get_num_threads()
    )
    return output


def sample(logits: Tensor, uniforms: Tensor | None, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """As `sampling.sample`, of all tokens: logits (B, V) in fp32, tokens (B,) and their log-probabilities."""
    library = _library()
    assert library is not None
    logits, rows = logits.float().contiguous(), len(logits)
    numbers: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    temperatures = torch.as_tensor(temperature, **numbers).expand(rows).contiguous()
    aims = torch.zeros(rows, **numbers) if uniforms is None else uniforms.float().clamp(max=1 - 2**-24).contiguous()
    tokens, logprobs = torch.empty(rows, dtype=torch.int64, device="cpu"), torch.empty(rows, **numbers)
    library.chatloom_sample(
        logits.data_ptr(),
        rows,
        logits.shape[1],
        *(each.data_ptr() for each in (aims, temperatures, tokens, logprobs)),
        torch.get_num_threads(),
    )
    return tokens, logprobs


def compute(network: Network, step: Step) -> None:
    """Compute a step."""
    library = _library()
    assert library is not None
    step.threads = torch.get_num_threads()
    library.chatloom_step(ctypes.byref(network), ctypes.byref(step))


# --- layouts ------------------------------------------------------------------------------------------------------


def padded(weight: Tensor) -> Tensor:
    """Zeros behind inputs and outputs up to whole groups and pairs of tiles."""
    outputs, inputs = weight.shape
    more = -inputs % GROUP, -outputs % (2 * LANES)
    return F.pad(weight, (0, more[0], 0, more[1])) if any(more) else weight


def laid_out(codes: Tensor, bits: int) -> Tensor:
    """Weights in bf16, or codes in uint8, (outputs, inputs) of whole groups and tiles, as the products read them."""
    outputs, inputs = codes.shape
    tiles, groups = outputs // LANES, inputs // GROUP
    if bits == 16:
        return codes.view(tiles, LANES, inputs // 2, 2).transpose(1, 2).contiguous()
    if bits == 8:
        return codes.view(tiles, LANES, groups, -1, 4).permute(0, 2, 3, 1, 4).contiguous()
    low, high = codes.view(tiles, LANES, groups, 2, -1, 4).unbind(3)
    return (low | high << 4).permute(0, 2, 3, 1, 4).contiguous()


def read_back(packed: Tensor, bits: int) -> Tensor:
    """The codes, or the weights, of which `packed` was made."""
    if bits == 16:
        return packed.transpose(1, 2).flatten(2).flatten(0, 1)
    plain = packed.permute(0, 3, 1, 2, 4)  # (tiles, LANES, groups, steps, 4)
    if bits == 4:
        plain = torch.cat((plain & 15, plain >> 4), 3)
    return plain.flatten(2).flatten(0, 1)


# --- the compiler -------------------------------------------------------------------------------------------------


@functools.cache
def _library() -> ctypes.CDLL | None:
    if ctypes.sizeof(c_void_p) != 8 or os.name != "posix":
        return None
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        warnings.warn(f"decoding is slower without compiled code: {error}", RuntimeWarning, stacklevel=2)
        return None
    for function in (library.chatloom_step, library.chatloom_product, library.chatloom_sample):
        function.restype = None
    library.chatloom_step.argtypes = c_void_p, c_void_p
    library.chatloom_product.argtypes = c_void_p, c_void_p, c_int32, c_void_p, c_int32
    library.chatloom_sample.argtypes = c_void_p, c_int32, c_int32, *[c_void_p] * 4, c_int32
    return library


def _compiled() -> Path:
    """The library for this processor, made if it is not there yet."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise RuntimeError("there is no C++ compiler (c++, g++ or clang++); install one, such as Debian's g++")
    source = _SOURCE.read_bytes()
    key = hashlib.sha256(b"\n".join([source, compiler.encode(), *(flag.encode() for flag in _FLAGS), _processor()]))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatloom"
    target = cache / f"native-{key.hexdigest()[:16]}.so"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / "native.so"
        for attempt in _ATTEMPTS:
            command = [compiler, *_FLAGS, *attempt, "-o", str(made), str(_SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode == 0:
                made.replace(target)
                return target
    raise RuntimeError(f"{compiler} cannot compile {_SOURCE.name}: {done.stderr.strip()[-500:]}")


def _processor() -> bytes:
    """What the compiled code depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    kept = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return "\n".join([platform.machine(), platform.processor(), *platform.libc_ver(), *kept]).encode()


def pointer(tensor: Tensor | None) -> int | None:
    """Where a tensor lies."""
    return None if tensor is None else tensor.data_ptr()
