"""FLOPs and bytes are those counted by hand, masks change what they should, and the networks take turns."""

import copy

import pytest
import torch
from torch import nn
from toys import CLASSES, NETWORKS, SHAPE, Reader, batches, conv_chain, mlp

from synflow_lib.devices import Speed
from synflow_lib.errors import InputError
from synflow_lib.pruning import Masks, compact, prunable, prune
from synflow_lib.training import cost, costs, flops
from synflow_lib.training.cost import LiveBytes

BATCH = batches((6,))[0]
PLAIN = {"repeats": 1, "device": "cpu", "speed": Speed()}
POSITIONS = {"0.weight": 8 * 8, "4.weight": 4 * 4, "9.weight": 1}  # of conv_chain's layers, where they write


def measured(**networks):
    return costs({name: (model, masks) for name, (model, masks) in networks.items()}, *BATCH, **PLAIN)


def pruned(model, compression=20, method="synflow"):
    return prune(model, method, compression, input_shape=SHAPE, iterations=30)


def test_flops_are_two_for_each_weight_and_position():
    assert flops(mlp(), SHAPE) == 2 * (192 * 12 + 12 * 9 + 9 * 7 + 7 * CLASSES)
    assert flops(conv_chain(), SHAPE) == 2 * (3 * 6 * 9 * 64 + 6 * 8 * 9 * 16 + 32 * CLASSES)
    assert flops(nn.Linear(8, 3), (4, 8)) == 2 * 4 * 8 * 3


@pytest.mark.parametrize("method", ["random", "magnitude", "synflow"])
def test_flops_with_masks_are_those_of_the_kept_weights(method):
    model = conv_chain()
    masks = pruned(model, 7, method)
    by_hand = 2 * sum(int(mask.sum()) * POSITIONS[name] for name, mask in masks.items())
    assert flops(model, SHAPE, masks) == by_hand
    assert flops(model, SHAPE, Masks({name: mask | True for name, mask in masks.items()})) == flops(model, SHAPE)


def test_a_layer_without_modules_around_it_is_counted_too():
    model = nn.Linear(6, 4)
    mask = torch.zeros(4, 6)
    mask[:, :2] = 1
    assert flops(model, (6,), {"weight": mask}) == flops(model, (6,)) // 3


@pytest.mark.parametrize("network", NETWORKS)
def test_only_the_compact_network_is_smaller(network):
    model = NETWORKS[network]()
    masks = pruned(model)
    small = compact(model, masks, SHAPE)
    table = measured(dense=(model, None), masked=(model, masks), compact=(small.model, small.masks))
    dense, masked, smaller = (table.loc[name] for name in ("dense", "masked", "compact"))
    for column in ("weights", "flops", "inference_bytes"):
        assert smaller[column] < masked[column] == dense[column]
    assert smaller["training_bytes"] < dense["training_bytes"] < masked["training_bytes"]
    assert smaller["weights"] == small.masks.total and masked["kept"] == masks.kept
    assert smaller["kept"] <= masked["kept"] and smaller["flops_kept"] <= masked["flops_kept"] < dense["flops_kept"]
    assert (table[["inference_seconds", "step_seconds"]] > 0).all(axis=None)


def test_the_masks_of_a_training_step_take_the_memory_of_the_layers_they_prune():
    model = mlp()
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in model.named_parameters()}
    masks = {name: mask for name, mask in masks.items() if mask.dim() == 2}
    masks["1.weight"][0] = False
    masks["5.weight"][0, 0] = False
    table = measured(dense=(model, None), masked=(model, masks))
    extra = table["training_bytes"]["masked"] - table["training_bytes"]["dense"]
    assert extra == 8 * (12 * 192 + 7 * 9)


def test_an_inference_holds_parameters_batch_and_two_neighbouring_activations():
    sizes = (192, 12, 9, 7)
    parameters = sum(a * b + b for a, b in zip(sizes, (*sizes[1:], CLASSES), strict=True))
    # Widest: the first hidden layer and its ReLU. Flattening is a view.
    by_hand = 8 * (parameters + 6 * 192 + 6 * (12 + 12)) + 8 * 6  # float64; labels are 8 bytes each
    assert measured(mlp=(mlp(), None))["inference_bytes"].item() == by_hand


def test_training_holds_gradients_and_momentum_beside_the_parameters():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES, bias=False)).double()
    table = measured(model=(model, None))
    weights = 8 * 192 * CLASSES
    rest = 8 * 6 * 192 + 8 * 6  # the batch
    assert 3 * weights + rest <= table["training_bytes"].item() <= 4 * weights + rest + 8 * 6 * CLASSES * 4
    assert table["inference_bytes"].item() == weights + rest + 8 * 6 * CLASSES


def test_live_bytes_count_storage_once_and_forget_what_is_gone():
    before = torch.zeros(100, dtype=torch.float64)
    with LiveBytes() as live:
        live.follow([before])
        a = torch.ones(50, dtype=torch.float64)
        view = a[:10].view(2, 5)
        before.add_(1)
        assert (live.now, live.peak) == (1200, 1200)
        a = a + a
        assert (live.now, live.peak) == (1600, 1600)  # the view keeps the first one
        del view
        assert (live.now, live.peak) == (1200, 1600)
        torch.cat([before, before]).sum()
        assert (live.now, live.peak) == (1200, 2808)
        del a
    assert live.now == 800


def test_what_autograd_keeps_counts_until_backward():
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    with LiveBytes() as live:
        y = x.exp().exp().sum()  # keeps both results
        assert live.now == 2 * 8000 + 8
        y.backward()
        assert live.now == 8000 + 8  # the gradient, and y
    assert x.grad is not None


class Noted(nn.Linear):
    calls = []  # noqa: RUF012 - deepcopy must not copy it

    def forward(self, x):
        self.calls.append((self.out_features, self.training))
        return super().forward(x)


def test_the_networks_take_turns():
    networks = {
        str(width): (nn.Sequential(nn.Flatten(), Noted(192, width), nn.Linear(width, CLASSES)).double(), None)
        for width in (2, 3)
    }
    Noted.calls.clear()
    costs(networks, *BATCH, repeats=4, device="cpu")
    turn = [(2, False), (2, True), (3, False), (3, True)]
    assert Noted.calls[-16:] == turn * 4


def test_the_networks_stay_as_they_are():
    model = conv_chain().train()
    masks = pruned(model)
    before = copy.deepcopy(model.state_dict())
    measured(masked=(model, masks))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_step_trains_nothing_that_is_pruned():
    model = conv_chain()
    masks = pruned(model)
    runner = cost._Runner(model, masks, BATCH, Speed())
    runner.memory()
    for name, parameter in runner.model.named_parameters():
        if name in masks:
            assert not parameter.grad[~masks[name]].any() and parameter.grad.any()
    momentum = [runner.optimiser.state[weight]["momentum_buffer"] for weight in runner.model.parameters()]
    assert all(buffer is not None for buffer in momentum)


@pytest.mark.parametrize(
    ("networks", "size", "repeats", "message"),
    [
        ({}, 6, 1, "at least one network"),
        ({"mlp": (mlp(), None)}, 6, 0, "one repeat"),
        ({"mlp": (mlp(), None)}, 1, 1, "a batch of two or more, not 1 images"),
        ({"mlp": (mlp(), pruned(conv_chain(), 2))}, 6, 1, "another model"),
    ],
)
def test_what_cannot_be_measured_is_refused(networks, size, repeats, message):
    with pytest.raises(InputError, match=message):
        costs(networks, BATCH[0][:size], BATCH[1][:size], repeats=repeats, device="cpu")
    with pytest.raises(InputError, match="2 images and 3 labels"):
        costs({"mlp": (mlp(), None)}, BATCH[0][:2], BATCH[1][:3], device="cpu")


def test_masks_of_another_model_are_refused_for_flops():
    with pytest.raises(InputError, match="another model"):
        flops(mlp(), SHAPE, pruned(conv_chain(), 2))


class Attending(nn.Module):
    """Attention of 5 tokens to 5, or of 5 to 7, between linear layers."""

    def __init__(self, others: int = 0, weights: bool = True, **options: int):
        super().__init__()
        self.first, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.last, self.others, self.weights = nn.Linear(8, 3), others, weights

    def forward(self, x):
        h = self.first(x)
        read = h.new_ones(len(h), self.others, self.attention.kdim) if self.others else h
        return self.last(self.attention(h, read, value=read, need_weights=self.weights)[0].mean(1))


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(("others", "options"), [(0, {}), (7, {}), (7, {"kdim": 4, "vdim": 4})])
def test_the_flops_of_attention_are_counted_and_each_projection_has_its_own(weights, others, options):
    model, read = Attending(others, weights, **options), others or 5
    before = torch.backends.mha.get_fastpath_enabled()
    width = options.get("kdim", 8)
    uses = {"first.weight": 5, "attention.out_proj.weight": 5, "last.weight": 1}
    ones = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    projections = 2 * 8 * (5 * 8 + 2 * read * width)
    attention = 2 * 2 * 5 * read * 8
    rest = 2 * sum(ones[name].numel() * times for name, times in uses.items())
    assert flops(model, (5, 6)) == flops(model, (5, 6), ones) == rest + projections + attention
    for name in uses:
        masks = ones | {name: torch.rand(ones[name].shape) < 0.5}
        assert (
            rest + projections + attention - flops(model, (5, 6), masks) == 2 * int((~masks[name]).sum()) * uses[name]
        )
    inputs = [name for name in ones if "_proj_weight" in name]
    nothing = ones | {name: torch.zeros_like(ones[name]) for name in inputs}
    assert flops(model, (5, 6), nothing) == rest + attention
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_a_transformer_layer_counts_in_eval_mode_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    assert flops(layer, (5, 8)) == 2 * 5 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 2 * 5 * 5 * 8


def test_a_weight_that_layers_share_counts_in_all_of_them():
    model = mlp(sizes=(192, 6, 6, 6))
    model[5].weight = model[3].weight
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    masks["3.weight"][0] = False
    assert flops(model, SHAPE) - flops(model, SHAPE, masks) == 2 * 2 * 6


def test_the_callers_random_state_is_left_alone():
    model = nn.Sequential(mlp(), nn.Dropout(0.5))
    before = torch.get_rng_state()
    measured(model=(model, None))
    assert torch.equal(torch.get_rng_state(), before)


def chain1d():
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))


def chain3d():
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


OTHER = {
    "numbers": (lambda: nn.Linear(6, 3), torch.ones(4, 6), 6 * 3),
    "series": (chain1d, torch.ones(4, 2, 8), 2 * 4 * 3 * 6 + 24 * 3),
    "volumes": (chain3d, torch.ones(4, 1, 4, 4, 4), 4 * 27 * 8 + 32 * 3),
    "tokens": (Reader, torch.ones(4, 5, dtype=torch.long), 4 * 3),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", OTHER)
def test_networks_of_other_inputs_than_images_cost_what_they_do(case, channels_last):
    build, x, products = OTHER[case]
    options = {"repeats": 1, "device": "cpu", "speed": Speed(channels_last=channels_last)}
    row = costs({"own": (build(), None)}, x, torch.arange(4) % 3, **options).loc["own"]
    assert row["flops"] == 2 * products == flops(build(), x.shape[1:]) and row["step_seconds"] > 0


def test_a_shape_that_the_model_cannot_take_gives_one_sentence():
    for build, shape in ((conv_chain, (4, 8, 8)), (chain1d, (2, 9))):
        with pytest.raises(InputError, match=r"cannot take an input of shape \(1,"):
            flops(build(), shape)
