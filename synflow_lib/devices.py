"""Where a network trains, and every speed feature in one place: `Speed`.

Measured on one core with AMX, a quarter-width VGG-11 on the digits: 1,280 images/s in plain float32, 1,590
with channels-last memory, 2,360 with bfloat16 as well.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from synflow_lib.errors import InputError

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None

# mallopt(3): M_MMAP_MAX, no piece outside the heap, and M_TRIM_THRESHOLD, never give back the end of the heap.
KEEP = {-4: 0, -1: -1}


def with_float64(device: torch.device) -> torch.device:
    """Where the numbers of a model on `device` are computed in float64: there, but for MPS, which has none, the CPU."""
    return torch.device("cpu") if device.type == "mps" else device


def resolve(name: str | torch.device = "auto") -> torch.device:
    """Return the device called `name`: "cpu", "cuda", "cuda:1", "mps", or "auto" (CUDA, else MPS, else the
    CPU).

    A CUDA device always carries its index. Raises InputError for a name that is unknown or a device that is
    absent.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, colon, index = str(name).partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not index.isdigit()):
        raise InputError(f"unknown device {str(name)!r} (known: auto, cpu, cuda, cuda:1, mps)")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
    if int(index or 0) >= count:
        found = f"{count} of that kind found" if count else "none of that kind found"
        raise InputError(f"device {str(name)!r} is not available ({found}): use 'cpu' or 'auto'")
    return torch.device(kind, int(index or 0))


FEW_CHANNELS = 16  # see `Speed.suited`


@dataclass(frozen=True)
class Speed:
    """What may make training faster; all off is plain float32 PyTorch. Model and data decide the result, not
    these: bfloat16 rounds, so runs differ in the last digits, but nothing here changes what is trained.

    The first six are the business of `training.train`, the last three of `benchmark.run`.
    """

    bfloat16: bool = False  # autocast: products in bfloat16, weights and sums in the model's dtype
    channels_last: bool = False  # memory order of images and convolutions; same numbers up to rounding
    fused: bool = False  # the whole optimiser step in one kernel
    graphs: bool = False  # replay the step as a CUDA graph: for networks that compute faster than they launch
    compile: bool = False  # torch.compile: fewer, larger kernels
    skip_biases: bool = False  # in front of BatchNorm, which cancels them: leave them as they are (`optim.idle_biases`)
    compact: bool = False  # train the smaller network that the masks leave, where they leave one
    skip_disconnected: bool = False  # a network cut in two answers a constant: compute its accuracy, do not train it
    share_cycles: bool = False  # cycles of pruning begin with the same training of the whole network: once a process

    @staticmethod
    def auto(device: torch.device) -> "Speed":
        """The fastest choice known for `device`.

        On a CPU without bfloat16 instructions autocast is emulated and slower than float32, so it stays off
        there. `compile` costs half a minute and more for each network before it gains anything, so it has to be
        asked for.
        """
        savings = {"compact": True, "skip_disconnected": True, "share_cycles": True}
        if device.type == "cuda":
            bfloat16 = torch.cuda.is_bf16_supported()
            return Speed(bfloat16=bfloat16, channels_last=True, fused=True, graphs=True, skip_biases=True, **savings)
        if device.type == "cpu":
            return Speed(bfloat16=cpu_has_bfloat16(), channels_last=True, fused=True, **savings)
        return Speed(**savings)

    def compiled(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """What calls `model`: itself, or its compiled form, which shares its parameters and is made at the first
        call.
        """
        return torch.compile(model, dynamic=False) if self.compile else model

    def require(self, device: torch.device) -> "Speed":
        """Itself; raises InputError where `device` has no such feature."""
        if self.graphs and device.type != "cuda":
            raise InputError(f"CUDA graphs need a CUDA device, not {str(device)!r}: switch graphs off")
        return self

    def suited(self, model: nn.Module, device: torch.device) -> "Speed":
        """Itself; without channels-last where that would corrupt memory.

        On x86 CPUs the gradient of the weight of a strided 1x1 convolution of few channels, as in a narrow or a compact
        ResNet, is written past its end, or is wrong (oneDNN issue 6035: fewer than 8 with AVX2, than 16 with AVX-512).
        """
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        risky = any(
            set(one.kernel_size) == {1} and max(one.stride) > 1 and one.in_channels // one.groups < FEW_CHANNELS
            for one in convolutions
        )
        return replace(self, channels_last=False) if risky and device.type == "cpu" else self

    def memory_format(self, *tensors: Tensor) -> torch.memory_format:
        """The memory order for `tensors`, a batch or the parameters of a network; channels-last is one of images."""
        images = {tensor.ndim for tensor in tensors} & {4, 5} == {4}
        return torch.channels_last if self.channels_last and images else torch.contiguous_format

    def autocast(self, device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
        """bfloat16 for the products of a float32 model; nothing for any other `dtype`, float64 above all."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16 and dtype == torch.float32)


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16 or AMX; ARM's BF16 extension)."""
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(bool(features.get(name)) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Give a generator on `device`, and seed the global ones for the block; they are put back as they were.

    The generator shuffles and augments; the global state is what dropout draws from. cuDNN is asked for
    deterministic algorithms meanwhile.
    """
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        try:
            yield torch.Generator(device).manual_seed(seed)
        finally:
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)


@contextmanager
def exact() -> Iterator[None]:
    """Let a GPU compute float32 in full and in the same order each time, for scores that a ranking hangs on.

    By default cuDNN rounds float32 convolutions to TF32, ten bits, and adds in any order.
    """
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def runs_share_gpus() -> bool:
    """Whether NVIDIA's Multi-Process Service is there, without which processes on one GPU take turns."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use `number` CPU threads for the block.

    The order of a sum depends on it, so a run repeats bit for bit only with the same number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next tensors; whether it can (Linux with glibc).

    glibc gives large pieces back to the system, at some moments of a training at every step, and then the system hands
    them out again page by page, filled with zeros: up to a third of the time of small networks, see
    `benchmarks/allocator.py`. It is a setting of the whole process; `forget_peak_memory` gives back what is free.
    """
    libc = _glibc()
    return libc is not None and all(libc.mallopt(option, value) for option, value in KEEP.items())


def forget_peak_memory(device: torch.device) -> None:
    """Start to measure the peak anew, where the system can: on CUDA, and on Linux for the process."""
    if device.type == "cuda":
        torch.cuda.init()  # before a process has used the GPU there is no peak to forget, and it is an error
        torch.cuda.reset_peak_memory_stats(device)
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)
    with contextlib.suppress(OSError):  # elsewhere the peak stays that of the whole process, an upper bound
        Path("/proc/self/clear_refs").write_text("5")


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, where it is glibc."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes: of the device on CUDA, else of the process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if Path("/proc/self/status").is_file():
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, the others kilobytes
