"""Where the program runs: device, dtype, seeds, ranks, reductions, and writes that survive a kill.

The only file that imports `torch.distributed`. Without `torchrun` every reduction is the identity, so the same
stage code runs on a laptop and on a cluster. torch is imported inside the functions: importing this module is free.
"""

import contextlib
import ctypes
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DTYPE_NAMES = ("fp32", "bf16", "fp16")
QUANTISED = ("int8", "int4")  # of weights that are only read: decoding and evaluation


# --- device and numbers ---------------------------------------------------------------------------------------


def pick_device(name: str | None = None) -> "torch.device":
    """The device called `name`; None is the best there is. Raises ValueError if it is not there."""
    import torch

    if name is None:
        name = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no GPU; use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; allowed: cpu, cuda, cuda:0, ...") from error


def pick_dtype(name: str, *, quantised: bool = False) -> "torch.dtype":
    """The torch dtype of `fp32`, `bf16` or `fp16`; where weights may be `quantised`, bf16 is all else beside them."""
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name in QUANTISED and not quantised:
        raise ValueError(
            f"dtype {name!r} is for weights that are only read (chat, evaluate, rank); here: {', '.join(DTYPE_NAMES)}"
        )
    if quantised:
        dtypes |= dict.fromkeys(QUANTISED, torch.bfloat16)
    if name not in dtypes:
        raise ValueError(f"dtype {name!r} is unknown; allowed: {', '.join(dtypes)}")
    return dtypes[name]


def autocast(device: "torch.device", dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for a forward pass: weights stay fp32, matrix products run in `dtype`. fp32 is a no-op."""
    import torch

    if dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=pick_dtype(dtype, quantised=True))


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far, in bytes (GPU memory is not counted)."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# --- randomness -----------------------------------------------------------------------------------------------


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed for the next tensor; whether it could.

    Without this, glibc gives every tensor of more than a megabyte or so back to the system, which hands it out again a
    zeroed page at a time: a sixth of the time of training a small model on one core. It is for processes that train,
    whose steps need the same memory again and again, so their peak does not grow.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    # M_MMAP_MAX 0: all from the heap; M_TRIM_THRESHOLD -1: which never shrinks; M_TOP_PAD: and grows by 64 MiB.
    return all(mallopt(option, value) == 1 for option, value in ((-4, 0), (-1, -1), (-2, 64 << 20)))


def let_waiting_threads_sleep() -> None:
    """Let threads that wait for one another at the end of a product sleep after some microseconds, not milliseconds.

    For processes that answer people beside other programs (a browser, a second model): a thread that spins takes the
    time that the one it waits for needs. On two cores with another process on one of them, decoding is 1.5 to 2 times
    as fast, and on idle ones as fast as before. GNU's OpenMP reads it once, so this comes before torch is imported; who
    has set OMP_WAIT_POLICY or GOMP_SPINCOUNT is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "300")


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch alike."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, "torch.Tensor"]:
    """torch's generator states, CPU and GPU, as byte tensors that safetensors can hold."""
    import torch

    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, "torch.Tensor"]) -> None:
    """Undo of `random_state`."""
    import torch

    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


# --- ranks ----------------------------------------------------------------------------------------------------


def _environment(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def local_rank() -> int:
    """This process's number on its machine."""
    return _environment("LOCAL_RANK", 0)


def _ready() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among all; 0 without torchrun."""
    import torch.distributed as dist

    return dist.get_rank() if _ready() else 0


def world_size() -> int:
    """The number of processes; 1 without torchrun."""
    import torch.distributed as dist

    return dist.get_world_size() if _ready() else 1


def is_main() -> bool:
    """Whether this process writes files and shows progress."""
    return rank() == 0


@contextlib.contextmanager
def distributed() -> Iterator[None]:
    """Join the process group that torchrun describes; does nothing alone. Nested use joins once."""
    if _environment("WORLD_SIZE", 1) == 1 or _ready():
        yield
        return
    import torch
    import torch.distributed as dist

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for every rank."""
    import torch.distributed as dist

    if _ready():
        dist.barrier()


def sum_across_ranks(tensor: "torch.Tensor") -> "torch.Tensor":
    """All-reduce `tensor` in place and return it."""
    import torch.distributed as dist

    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Iterable["torch.nn.Parameter"]) -> None:
    """Sum every `.grad` over ranks through one flat buffer. A parameter without a gradient counts as zero."""
    import torch

    if world_size() == 1:
        return
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = sum_across_ranks(torch.cat([grad.reshape(-1) for grad in grads]))
    offset = 0
    for grad in grads:
        grad.copy_(flat[offset : offset + grad.numel()].view_as(grad))
        offset += grad.numel()


def broadcast_parameters(module: "torch.nn.Module") -> None:
    """Give every rank rank 0's weights."""
    import torch.distributed as dist

    if world_size() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def gather_objects(value: Any) -> list[Any]:
    """`[value of rank 0, value of rank 1, ...]` on every rank."""
    import torch.distributed as dist

    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


# --- files ----------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError for a file that holds none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well, replacing what was there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        _sync_folder(temporary)
        if path.exists():
            stale = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.rename(stale / path.name)
            temporary.rename(path)
            shutil.rmtree(stale, ignore_errors=True)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
