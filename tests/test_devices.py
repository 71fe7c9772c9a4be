import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from synflow_lib import devices
from synflow_lib.devices import Speed
from synflow_lib.errors import InputError

CPU = torch.device("cpu")


def test_resolve_names_a_device_that_is_there():
    assert devices.resolve("cpu") == devices.resolve(CPU) == CPU
    tensor = torch.ones(2, device=devices.resolve("auto"))
    assert tensor.sum() == 2


@pytest.mark.parametrize(
    ("convolution", "device", "kept"),
    [
        (nn.Conv2d(6, 13, 1, 2), "cpu", False),
        (nn.Conv2d(15, 32, (1, 1), (1, 2)), "cpu", False),
        (nn.Conv2d(32, 32, 1, 2, groups=4), "cpu", False),
        (nn.Conv2d(16, 32, 1, 2), "cpu", True),
        (nn.Conv2d(6, 13, 1), "cpu", True),
        (nn.Conv2d(6, 13, 3, 2), "cpu", True),
        (nn.Conv2d(6, 13, 1, 2), "cuda", True),
    ],
)
def test_channels_last_is_left_out_where_it_would_corrupt_memory(convolution, device, kept):
    speed = Speed(channels_last=True, fused=True, bfloat16=True)
    suited = speed.suited(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sequential(convolution)), torch.device(device))
    assert suited == (speed if kept else replace(speed, channels_last=False))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "CPU"])
def test_resolve_refuses_an_unknown_name(name):
    with pytest.raises(InputError, match="unknown device"):
        devices.resolve(name)


@pytest.mark.parametrize("name", ["cuda:99", "mps:1"])
def test_resolve_refuses_an_absent_device(name):
    with pytest.raises(InputError, match=f"{name}.*not available.*use 'cpu' or 'auto'"):
        devices.resolve(name)


def test_autocast_is_for_float32_alone():
    speed, weight = Speed(bfloat16=True), torch.ones(2, 2)
    with speed.autocast(CPU, torch.float32):
        assert (weight @ weight).dtype == torch.bfloat16
    with speed.autocast(CPU, torch.float64):
        assert (weight @ weight).dtype == torch.float32
    with Speed().autocast(CPU, torch.float32):
        assert (weight @ weight).dtype == torch.float32


def test_channels_last_is_an_order_of_images_alone():
    shapes = {1: (4,), 2: (4, 6), 3: (4, 2, 8), 4: (4, 2, 8, 8), 5: (4, 1, 4, 4, 4)}
    tensors = {rank: torch.ones(shape) for rank, shape in shapes.items()}
    for rank, tensor in tensors.items():
        order = Speed(channels_last=True).memory_format(tensor)
        assert (order is torch.channels_last) == (rank == 4)
        tensor.to(memory_format=order)
        assert Speed().memory_format(tensor) is torch.contiguous_format
    assert Speed(channels_last=True).memory_format(*tensors.values()) is torch.contiguous_format  # 4 beside 5
    assert Speed(channels_last=True).memory_format(tensors[1], tensors[4]) is torch.channels_last


def test_auto_speed_is_one_that_trains_here():
    speed = Speed.auto(CPU)
    convolution = torch.nn.Conv2d(3, 4, 3)
    convolution.to(memory_format=speed.memory_format(*convolution.parameters()))
    with speed.autocast(CPU, torch.float32):
        convolution(torch.ones(2, 3, 8, 8)).sum().backward()
    assert convolution.weight.grad.isfinite().all()
    assert Speed.auto(torch.device("mps")) == Speed(compact=True, skip_disconnected=True, share_cycles=True)
    assert not speed.compile  # costs more than a short training gains


def test_seeded_gives_the_same_draws_and_puts_the_global_state_back():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with devices.seeded(3, CPU) as generator:
            draws.append((torch.rand(4), torch.rand(4, generator=generator)))
        torch.rand(1)
    torch.set_rng_state(before)
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])
    with devices.seeded(3, CPU):
        torch.rand(100)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_puts_the_global_state_back_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), devices.seeded(3, CPU):
        torch.rand(1 // 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_scores_are_computed_in_full_and_in_one_order_for_the_block():
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    with devices.exact():
        assert (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark) == (False, True, False)
    assert (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark) == before


def test_threads_holds_for_the_block():
    before = torch.get_num_threads()
    with devices.threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_peak_memory_sees_a_large_tensor():
    # In a process of its own: this one may have freed memory at hand from earlier tests.
    script = """if True:
        import torch
        from synflow_lib import devices
        cpu = torch.device("cpu")
        devices.forget_peak_memory(cpu)
        before = devices.peak_memory(cpu)
        tensor = torch.ones(64 * 2**20 // 4)  # 64 MiB
        print(devices.peak_memory(cpu) - before)
    """
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(answer.stdout) >= 32 * 2**20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_of_a_gpu_can_be_forgotten_before_the_process_has_used_it():
    """It is what a worker does first where its speed was chosen elsewhere (`--with`)."""
    script = """if True:
        import torch
        from synflow_lib import devices
        gpu = torch.device("cuda:0")
        devices.forget_peak_memory(gpu)
        print(devices.peak_memory(gpu))
    """
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(answer.stdout) == 0


def test_a_gpu_is_made_ready_before_its_peak_is_forgotten(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(str(device)))
    devices.forget_peak_memory(torch.device("cuda:1"))
    assert calls == ["init", "cuda:1"]


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_for_the_next_tensor_and_given_back_when_the_peak_is_forgotten():
    script = """if True:
        import resource, torch
        from synflow_lib import devices
        def faults():
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
        assert devices.keep_freed_memory()
        for _ in range(30):  # until the heap has found its form
            torch.ones(2**24)  # 64 MiB
        before = faults()
        for _ in range(10):
            torch.ones(2**24)
        kept = resident()
        print(faults() - before)
        devices.forget_peak_memory(torch.device("cpu"))
        print(kept - resident())
    """
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    faults, given_back = map(int, answer.stdout.split())
    assert faults < 10 * 16  # 64 MiB are 16,384 pages
    assert given_back >= 32 * 2**20


def test_compiling_is_asked_for():
    model = torch.nn.Linear(2, 3)
    assert Speed().compiled(model) is model
    compiled = Speed(compile=True).compiled(model)
    assert compiled is not model and list(compiled.parameters()) == list(model.parameters())
