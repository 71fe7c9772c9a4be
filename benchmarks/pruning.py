"""What a mask costs: ours beside a plain implementation, in turn, in one run.

    python benchmarks/pruning.py                                   # all networks and methods, one core
    python benchmarks/pruning.py --models vgg16 --methods synflow  # some
    python benchmarks/pruning.py --dtype float64 --device cuda

The plain side is what the paper's pseudo-code suggests: custom layers that multiply a mask buffer into their weight
in every forward pass; scores as .grad times weight; one concatenated vector of all scores, its threshold by
`torch.kthvalue`, and masks by `torch.where`. Each measurement is a process of its own with one thread, so that peak
memory is its own; memory is what was added to the loaded model. The ratio is plain over ours, of CPU time (of wall
time on a GPU). Both sides must agree on how many weights they keep.
"""

import argparse
import json
import os
import subprocess
import sys
import time

MODELS = {  # name: (model, data set or (input shape, classes))
    "vgg11": ("vgg11", "cifar100"),
    "vgg16": ("vgg16", "cifar100"),
    "resnet18": ("resnet18", "cifar100"),
    "vgg19": ("vgg19", ((3, 224, 224), 1000)),
}
METHODS = ("synflow", "snip", "grasp")
SIDES = ("plain", "ours")


def measure(side: str, name: str, method: str, dtype: str, device: str, compression: float) -> dict:
    """Prune once on this `side`, in this process; return CPU and wall seconds, added memory in bytes, the masks."""
    import torch

    import synflow_lib as sf
    from synflow_lib import devices, pruning  # noqa: F401, so that code is not counted as memory of one side

    torch.set_num_threads(1)
    model, dataset = MODELS[name]
    where = devices.resolve(device)
    network = sf.models.build(model, dataset).to(where, getattr(torch, dtype))
    spec = None if isinstance(dataset, tuple) else sf.data.DATASETS[dataset]
    shape, classes = (spec.input_shape, spec.classes) if spec else dataset
    generator = torch.Generator().manual_seed(0)
    count = 20 if name == "vgg19" else 100
    images = torch.randn(count, *shape, generator=generator).to(where, getattr(torch, dtype))
    batches = [(images, torch.randint(classes, (count,), generator=generator).to(where))]
    devices.forget_peak_memory(where)
    before = devices.peak_memory(where)
    cpu, wall = time.process_time(), time.perf_counter()
    if side == "ours":
        masks = dict(sf.prune(network, method, compression, input_shape=shape, batches=batches))
    else:
        masks = plain_prune(network, method, compression, shape, batches)
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    memory = (devices.peak_memory(where) or 0) - (before or 0)
    kept = sum(int(mask.sum()) for mask in masks.values())
    weights = sum(mask.numel() for mask in masks.values()) * torch.finfo(getattr(torch, dtype)).bits // 8
    return {"cpu": cpu, "wall": wall, "memory": memory, "weights": weights, "kept": kept}


def plain_prune(network, method: str, compression: float, shape: tuple, batches: list) -> dict:
    """Algorithm 1 and single-shot scoring as most people would write them."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class MaskedConv2d(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight * self.mask, self.bias)

    class MaskedLinear(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight * self.mask, self.bias)

    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for module in layers.values():
        module.__class__ = MaskedConv2d if isinstance(module, nn.Conv2d) else MaskedLinear
        module.register_buffer("mask", torch.ones_like(module.weight))
    network.eval()
    iterations = 100 if method == "synflow" else 1
    for k in range(1, iterations + 1):
        scores = plain_scores(network, list(layers.values()), method, shape, batches)
        everything = torch.cat([score.flatten() for score in scores])
        remove = int((1 - compression ** (-k / iterations)) * everything.numel())
        threshold = torch.kthvalue(everything, remove).values if remove else everything.min() - 1
        for module, score in zip(layers.values(), scores, strict=True):
            zero, one = torch.zeros_like(module.mask), torch.ones_like(module.mask)
            module.mask.copy_(torch.where(score <= threshold, zero, one))
    return {f"{name}.weight": module.mask.bool() for name, module in layers.items()}


def plain_scores(network, layers: list, method: str, shape: tuple, batches: list) -> list:
    """One score tensor per layer; the gradients go through the masks."""
    import torch
    from torch.nn import functional as F

    weights = [layer.weight for layer in layers]
    if method == "synflow":
        signs = {name: torch.sign(tensor) for name, tensor in network.state_dict().items()}
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.abs_()
        network(torch.ones(1, *shape, dtype=weights[0].dtype, device=weights[0].device)).sum().backward()
        scores = [(layer.mask * layer.weight * layer.weight.grad).detach().abs() for layer in layers]
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                tensor.mul_(signs[name])
        network.zero_grad()
        return scores
    ((images, labels),) = batches
    gradients = torch.autograd.grad(F.cross_entropy(network(images), labels), weights, create_graph=method == "grasp")
    if method == "snip":
        return [(weight * gradient).detach().abs() for weight, gradient in zip(weights, gradients, strict=True)]
    along = sum((gradient * gradient.detach()).sum() for gradient in gradients)
    products = torch.autograd.grad(along, weights)
    return [(weight * product).detach() for weight, product in zip(weights, products, strict=True)]


def main() -> None:
    """Run both sides of every case in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["vgg11", "vgg16", "resnet18", "vgg19"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compression", type=float, default=100.0)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS, metavar=("SIDE", "MODEL", "METHOD"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.dtype, arguments.device, arguments.compression)))
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    print("model     method   side     CPU s  wall s  added memory of weights  ratio")
    for name in arguments.models:
        for method in arguments.methods:
            results = {}
            for side in SIDES:
                command = [sys.executable, __file__, *sys.argv[1:], "--one", side, name, method]
                answer = subprocess.run(command, capture_output=True, text=True, env=environment)
                if answer.returncode:
                    sys.exit(f"{side} {name} {method} failed:\n{answer.stderr}")
                results[side] = row = json.loads(answer.stdout.splitlines()[-1])
                clock = "cpu" if arguments.device == "cpu" else "wall"
                ratio = f"{results['plain'][clock] / row[clock]:.1f}x" if side == "ours" else ""
                share = f"{row['memory'] / row['weights']:.1f}x"
                print(
                    f"{name:<9} {method:<8} {side:<6} {row['cpu']:7.2f} {row['wall']:7.2f} "
                    f"{row['memory'] / 2**20:9.0f} MiB {share:>10} {ratio:>6}",
                    flush=True,
                )
            if abs(results["plain"]["kept"] - results["ours"]["kept"]) > 1:
                sys.exit(f"the sides keep different numbers of weights: {results}")


if __name__ == "__main__":
    main()
