"""The compact network is the masked one: the same outputs, the same training, and nothing is removed that counts."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from toys import CLASSES, NETWORKS, SHAPE, batches, conv_chain, mlp, residual

from synflow_lib import models
from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import flow_graph
from synflow_lib.pruning import Masks, apply_masks, prunable, prune
from synflow_lib.pruning.compact import compact
from synflow_lib.training import mask_gradients


class Grouped(nn.Module):
    """A depthwise convolution of two outputs a channel, then one of three groups."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise, self.norm = nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(12)
        self.pointwise = nn.Conv2d(12, 12, 1)
        self.grouped = nn.Conv2d(12, 6, 3, padding=1, groups=3)
        self.classifier = nn.Linear(6 * 4, CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm(self.depthwise(torch.relu(self.stem(x)))))
        x = torch.relu(self.grouped(torch.relu(self.pointwise(x))))
        return self.classifier(F.adaptive_avg_pool2d(x, 2).flatten(1))


def grouped():
    return Grouped().double()


MODELS = {**NETWORKS, "grouped": grouped}


def random_masks(model, density, seed=0, shape=SHAPE):
    """Keep that share of the connections between units, and of each of those most of the weights."""
    generator, masks = torch.Generator().manual_seed(seed), full(model)
    graph = flow_graph(model, shape)
    for layer in graph.layers:
        mask = masks[layer.weight]
        sources = graph.sizes[layer.source] // layer.groups
        edges = torch.rand(len(mask), sources, generator=generator) < density
        edges = edges.repeat_interleave(mask.shape[1] // edges.shape[1], 1).view(
            *mask.shape[:2], *[1] * (mask.dim() - 2)
        )
        mask &= edges & (torch.rand(mask.shape, generator=generator) < 0.8)
    return Masks(masks)


def full(model):
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}


def without(model, *places):
    """All weights but those at `places`, pairs of a name and an index."""
    masks = full(model)
    for name, index in places:
        masks[name][index] = False
    return Masks(masks)


def disturbed(model, share=1.0, seed=0):
    """Set that share of all biases, betas, gammas and running statistics to values as after training."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1:
            new = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            new = new.abs() + 0.1 if "var" in name else new
            chosen = torch.rand(tensor.shape, generator=generator) < share
            tensor.copy_(torch.where(chosen, new, tensor))
    return model


def plain(model):
    """Biases, betas and running means of zero, as before any training."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor.zero_()
    return model


def outputs_agree(model, masks, shape, result=None):
    """Whether masked and compact network agree in eval and in train mode; the models themselves are left alone."""
    result = result or compact(model, masks, shape)
    large, small = apply_masks(copy.deepcopy(model), masks), copy.deepcopy(result.model)
    x = torch.randn(6, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return all(torch.allclose(large.train(m)(x), small.train(m)(x), rtol=0, atol=1e-10) for m in (False, True))


def trained(model, masks, shape, classes, steps=50, **options):
    """The losses of `steps` steps on three batches in turn; `model` is trained in place, its masks kept."""
    optimiser = torch.optim.SGD(
        model.parameters(), **{"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, **options}
    )
    zero_pruned, data, losses = mask_gradients(model, masks), batches((8, 8, 6), classes, shape), []
    for step in range(steps):
        x, y = data[step % 3]
        loss = F.cross_entropy(model.train()(x), y)
        optimiser.zero_grad()
        loss.backward()
        zero_pruned()
        optimiser.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


def trains_alike(model, masks, shape, classes=CLASSES, **options):
    """Train both; compare losses, everything that survives, and the function of the expanded state."""
    result = compact(model, masks, shape)
    large = apply_masks(copy.deepcopy(model), masks)
    first, second = (
        trained(large, masks, shape, classes, **options),
        trained(result.model, result.masks, shape, classes, **options),
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-8)
    assert first[-3:].mean() < first[:3].mean()
    again = compact(large, masks, shape)  # what could be removed before training can be removed after it
    assert all(torch.equal(again.kept[label], units) for label, units in result.kept.items())
    for name, tensor in again.model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], tensor, rtol=0, atol=1e-8)
    expanded = copy.deepcopy(model)
    expanded.load_state_dict(result.expand())
    assert outputs_agree(expanded, masks, shape, result)
    return result, large


@settings(max_examples=60, deadline=None)
@given(
    network=st.sampled_from(sorted(MODELS)),
    density=st.sampled_from([0.05, 0.15, 0.3, 0.6, 1.0]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_outputs_are_those_of_the_masked_network(network, density, share, seed):
    model = disturbed(plain(MODELS[network]()), share, seed)
    masks = random_masks(model, density, seed)
    try:
        result = compact(model, masks, SHAPE)
    except InputError as error:
        assert "cut the network in two" in str(error)
        return
    assert outputs_agree(model, masks, SHAPE, result)
    assert result.masks.total <= masks.total and result.share == result.masks.total / masks.total


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("network", MODELS)
def test_training_follows_the_masked_network(network, share):
    model = disturbed(plain(MODELS[network]()), share)
    result, _ = trains_alike(model, random_masks(model, 0.3, 4), SHAPE)
    assert result.share < 1


@pytest.mark.parametrize(
    ("name", "size", "width", "compression"), [("vgg11", 32, 0.125, 10), ("resnet18", 16, 0.125, 10)]
)
def test_the_networks_of_the_paper_train_alike(name, size, width, compression):
    shape = (3, size, size)
    model = models.build(name, (shape, CLASSES), width).double()
    masks = prune(model, "synflow", compression, input_shape=shape, iterations=20)
    result, _ = trains_alike(model, masks, shape, lr=0.02)
    assert result.share < 0.6


def test_torchvision_resnet18_is_compacted():
    model = pytest.importorskip("torchvision.models").resnet18(num_classes=10).double()
    masks = random_masks(model, 0.01, 3, (3, 64, 64))
    result = compact(model, masks, (3, 64, 64))
    assert outputs_agree(model, masks, (3, 64, 64), result) and result.share < 0.9


def test_bottleneck_blocks_with_zero_gammas_train_alike():
    # Betas stay zero: of a constant that is not, BatchNorm's normalised value is rounding, and ReLU goes by its sign.
    resnet = pytest.importorskip("torchvision.models.resnet")
    options = {"num_classes": CLASSES, "zero_init_residual": True, "width_per_group": 4}
    model = resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1], **options).double()
    masks = random_masks(model, 0.02, 3, (3, 32, 32))
    assert trains_alike(model, masks, (3, 32, 32), steps=10)[0].share < 0.9


class WrittenOut(nn.Module):
    """A residual network as it is often written: pooling and activations in code, sizes read off, a view at the end."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.inner, self.outer = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.last, self.shortcut = nn.BatchNorm2d(6), nn.Sequential()
        self.hidden, self.classifier = nn.Linear(6 * 4, 7), nn.Linear(7, CLASSES)

    def forward(self, x):
        out = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        inner = self.last(self.outer(F.relu6(self.inner(out))))
        inner += self.shortcut(out)
        out = F.avg_pool2d(F.relu(inner), 2)
        return self.classifier(F.relu(self.hidden(out.view(out.size(0), -1))))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_network_that_is_written_out_is_compacted(share):
    model = disturbed(plain(WrittenOut().double()), share)
    result, _ = trains_alike(model, random_masks(model, 0.3, 2), SHAPE)
    assert result.share < 0.9


@pytest.mark.parametrize(
    ("activation", "bias", "kept"),
    [
        (F.relu, True, 11),
        (F.relu6, True, 11),
        (F.gelu, True, 12),
        (F.gelu, False, 11),
        (torch.sigmoid, False, 12),
        (lambda x: x.sigmoid(), False, 12),
        (F.softplus, False, 12),
    ],
)
def test_an_activation_in_code_is_what_it_is_as_a_module(activation, bias, kept):
    class Activated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(192, 12, bias=bias), nn.Linear(12, CLASSES)

        def forward(self, x):
            return self.last(activation(self.first(x.view(x.size(0), -1))))

    torch.manual_seed(0)
    model = plain(Activated().double())
    result, _ = trains_alike(model, without(model, ("first.weight", 4)), SHAPE)
    assert len(result.kept["first"]) == kept


def test_of_a_depthwise_convolution_single_channels_go():
    """As in MobileNet: expand, filter each channel, project; dead and unread channels vanish whole."""
    torch.manual_seed(0)
    expand = [nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6()]
    filters = [nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6()]
    head = [nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)]
    model = plain(nn.Sequential(*expand, *filters, *head).double())
    masks = without(model, ("0.weight", 1), ("3.weight", 2), ("6.weight", (slice(None), 3)))
    result, _ = trains_alike(model, masks, SHAPE)
    assert result.kept["0"].tolist() == result.kept["3"].tolist() == [0, 4, 5]
    small = result.model[3]
    assert (small.groups, small.in_channels, small.out_channels) == (3, 3, 3) and small.weight.shape == (3, 1, 3, 3)
    model[4].bias.data[2] = 0.5  # the filter is gone, and its channel carries a constant: both ends stay
    kept = compact(model, masks, SHAPE).kept
    assert kept["3"].tolist() == kept["0"].tolist() == [0, 2, 4, 5]


def test_of_a_grouped_convolution_whole_groups_go():
    model = plain(grouped())
    unread = slice(2 * 4, 4 * 4)  # channels 2 and 3 of four positions each: the second of three groups
    result, _ = trains_alike(model, without(model, ("classifier.weight", (slice(None), unread))), SHAPE)
    assert result.kept["grouped"].tolist() == [0, 1, 4, 5]
    assert result.kept["pointwise"].tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    small = result.model.grouped
    assert (small.groups, small.in_channels, small.out_channels) == (2, 8, 4)
    partly = without(model, ("classifier.weight", (slice(None), slice(2 * 4, 3 * 4))))
    assert compact(model, partly, SHAPE).share == 1
    dead = without(model, ("depthwise.weight", [2, 3, 5]))  # both outputs of channel 1, one of channel 2
    result, _ = trains_alike(model, dead, SHAPE)
    assert result.kept["stem"].tolist() == [0, 2, 3, 4, 5]
    assert result.kept["depthwise"].tolist() == [0, 1, *range(4, 12)]


def test_what_stays_for_its_group_alone_keeps_what_it_reads():
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*first, nn.Conv2d(4, 2, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES))
    model = disturbed(model.double())
    only = [("2.weight", ([0, 2, 3], 2)), ("2.weight", (1, [0, 1]))]  # unit 2 leads to channel 1 alone, which
    masks = without(model, *only, ("5.weight", (0, 1)))  # nobody reads, but its group has channel 0 too
    result, _ = trains_alike(model, masks, SHAPE)
    assert result.share == 1 and result.kept["0"].tolist() == [0, 1, 2]


def test_a_grouped_branch_without_signal_keeps_one_group():
    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.inner, self.leave = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 3, 1)
            self.last = nn.Conv2d(3, CLASSES, 8)

        def forward(self, x):
            return self.last(torch.relu(x + self.leave(torch.relu(self.inner(torch.relu(self.enter(x))))))).flatten(1)

    torch.manual_seed(0)
    model = disturbed(Branched().double())
    masks = without(model, *((f"{name}.weight", ...) for name in ("enter", "inner", "leave")))
    result, _ = trains_alike(model, masks, SHAPE)
    assert result.kept["enter"].tolist() == [0, 1] and result.kept["inner"].tolist() == [0, 1, 2]
    assert result.model.inner.groups == 1


@pytest.mark.parametrize(("name", "options"), [("mobilenet_v2", {"dropout": 0.0}), ("resnext50_32x4d", {})])
def test_torchvision_networks_with_grouped_convolutions_are_compacted(name, options):
    model = getattr(pytest.importorskip("torchvision.models"), name)(num_classes=10, **options).double()
    scored = copy.deepcopy(
        model
    )  # with ReLU in the place of ReLU6, which lets no gradient of SynFlow's large values by
    for module in list(scored.modules()):
        for child in [key for key, value in module.named_children() if isinstance(value, nn.ReLU6)]:
            setattr(module, child, nn.ReLU())
    masks = prune(scored, "synflow", 30, input_shape=(3, 64, 64), iterations=10)
    result = compact(model, masks, (3, 64, 64))
    assert outputs_agree(model, masks, (3, 64, 64), result) and result.share < 0.5


DEAD = [("0.weight", 2)]  # all that channel 2 of the first convolution reads


@pytest.mark.parametrize(
    ("name", "kept"),
    [(None, 5), ("0.bias", 6), ("1.bias", 6), ("1.running_mean", 6), ("1.weight", 5), ("1.running_var", 5)],
)
def test_a_channel_without_inputs_goes_only_where_its_constant_is_zero_in_both_modes(name, kept):
    model = plain(conv_chain())
    if name:
        model.state_dict()[name][2] = 0.7
    masks = without(model, *DEAD)
    result = compact(model, masks, SHAPE)
    assert result.model[0].out_channels == result.model[1].num_features == result.model[4].in_channels == kept
    assert len(result.kept["0"]) == kept and result.model[0].weight.shape[0] == kept
    assert outputs_agree(model, masks, SHAPE)
    trains_alike(model, masks, SHAPE)


@pytest.mark.parametrize("value", [0.0, -0.7, 0.7])
def test_a_unit_that_nobody_reads_goes_whatever_it_carries(value):
    model = disturbed(conv_chain())
    model[0].bias.data.fill_(value)
    masks = without(model, ("4.weight", (slice(None), 2)))
    result, _ = trains_alike(model, masks, SHAPE)
    assert result.kept["0"].tolist() == [0, 1, 3, 4, 5]


def test_removing_a_unit_frees_those_before_and_behind_it():
    model = plain(mlp(sizes=(192, 3, 3, 3)))
    # 1 -> 1 -> 1 is a path; 0 -> 0 ends, 2 -> 2 begins from nothing.
    masks = {name: torch.zeros_like(mask) for name, mask in full(model).items()}
    masks["1.weight"][:2] = True
    masks["3.weight"].copy_(torch.eye(3))
    masks["5.weight"][1:, 1:] = torch.eye(2).bool()
    masks["7.weight"][:, 1:] = True
    result, _ = trains_alike(model, masks, SHAPE)
    assert [result.kept[label].tolist() for label in ("1", "3", "5")] == [[1], [1], [1]]
    assert [m.in_features for m in result.model if isinstance(m, nn.Linear)] == [192, 1, 1, 1]


def test_a_flattened_channel_is_all_its_positions():
    model = conv_chain()
    masks = without(model, ("9.weight", (slice(None), slice(4, 8))))  # channel 1 of 2x2 positions
    result = compact(model, masks, SHAPE)
    assert result.kept["4"].tolist() == [0, 2, 3, 4, 5, 6, 7] and result.model[9].in_features == 28
    assert torch.equal(result.model[9].weight, torch.cat([model[9].weight[:, :4], model[9].weight[:, 8:]], 1))
    partly = without(model, ("9.weight", (slice(None), slice(4, 7))))
    assert compact(model, partly, SHAPE).share == 1


def test_the_beta_of_a_dead_branch_is_trained_by_the_sum():
    model = plain(residual())
    masks = without(model, ("outer.weight", 1))
    result, large = trains_alike(model, masks, SHAPE)
    assert result.share == 1 and large.norm.bias[1] != 0


def test_a_channel_of_a_stream_goes_with_all_its_writers():
    model = plain(residual())
    masks = without(model, ("stem.weight", 1), ("outer.weight", 1))
    result, large = trains_alike(model, masks, SHAPE)
    assert result.kept["stem"].tolist() == [0, 2, 3] and large.norm.bias[1] == 0
    small = result.model
    assert (
        small.stem.out_channels == small.inner.in_channels == small.outer.out_channels == small.norm.num_features == 3
    )
    assert small.last.in_channels == small.shortcut.in_channels == 3
    model.norm.bias.data[1] = -0.5  # behind the ReLU a zero too, but weight decay moves it
    assert compact(model, masks, SHAPE).share == 1


def test_a_channel_of_a_stream_goes_where_no_block_reads_it():
    model = disturbed(residual())
    column = (slice(None), 1)
    masks = without(model, ("inner.weight", column), ("last.weight", column), ("shortcut.weight", column))
    assert trains_alike(model, masks, SHAPE)[0].kept["stem"].tolist() == [0, 2, 3]
    read = without(model, ("inner.weight", column), ("last.weight", column))
    assert compact(model, read, SHAPE).share == 1


def test_what_a_later_block_writes_to_a_channel_that_stays_is_kept():
    shape = (3, 16, 16)
    model = models.build("resnet18", (shape, CLASSES), width=0.125).double()
    column = (slice(None), 1)  # of the first stream, read by the first block alone
    readers = [f"blocks.{name}.weight" for name in ("1.conv1", "2.conv1", "2.shortcut.0")]
    only = ("blocks.1.conv2.weight", ([0, *range(2, 8)], 0))  # unit 0 writes to that channel alone
    result, _ = trains_alike(model, without(model, *((name, column) for name in readers), only), shape, steps=10)
    assert result.kept["conv1"].tolist() == result.kept["blocks.1.conv1"].tolist() == list(range(8))


def test_masks_of_zeros_and_ones_do():
    model = disturbed(conv_chain())
    masks = random_masks(model, 0.2, 1)
    result = compact(model, {name: mask.float() for name, mask in masks.items()}, SHAPE)
    assert result.share < 1 and outputs_agree(model, masks, SHAPE, result)


def test_an_empty_branch_keeps_one_channel_of_zeros():
    model = disturbed(residual())
    masks = without(model, ("inner.weight", ...), ("outer.weight", ...))
    result, _ = trains_alike(model, masks, SHAPE)
    assert result.kept["inner"].tolist() == [0] and not result.model.inner.weight.any()


@pytest.mark.parametrize(
    ("activation", "bias", "kept"),
    [
        (nn.ReLU, True, 11),
        (nn.ReLU6, True, 11),
        (nn.LeakyReLU, True, 12),
        (nn.Tanh, True, 12),
        (nn.Tanh, False, 11),
        (nn.Sigmoid, False, 12),
    ],
)
def test_only_a_relu_keeps_the_gradient_from_a_bias_of_zero(activation, bias, kept):
    model = plain(mlp(activation, bias))
    result, large = trains_alike(model, without(model, ("1.weight", 4)), SHAPE)
    assert len(result.kept["1"]) == kept
    if bias:
        assert bool(large[1].bias[4] != 0) == (kept == 12)


@pytest.mark.parametrize("between", ["BN pool relu", "BN relu pool", "BN pool", "pool BN relu", "relu BN"])
def test_what_lies_between_the_beta_and_the_relu_decides(between):
    torch.manual_seed(0)
    layers = {"BN": nn.BatchNorm2d(4), "pool": nn.MaxPool2d(2), "relu": nn.ReLU()}
    head = [nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)]
    model = plain(nn.Sequential(nn.Conv2d(3, 4, 3), *(layers[name] for name in between.split()), *head).double())
    result, large = trains_alike(model, without(model, ("0.weight", 3)), SHAPE)
    blocked = between.endswith("relu") or between == "BN relu pool"
    assert len(result.kept["0"]) == (3 if blocked else 4)
    norm = next(module for module in large if isinstance(module, nn.BatchNorm2d))
    assert bool(norm.bias[3] == 0) == blocked


def test_the_way_back():
    model = disturbed(conv_chain())
    before = copy.deepcopy(model.state_dict())
    masks = random_masks(model, 0.2, 1)
    result = compact(model, masks, SHAPE)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    masked = apply_masks(copy.deepcopy(model), masks).state_dict()
    expanded = result.expand()
    assert list(expanded) == list(masked) and all(torch.equal(expanded[name], masked[name]) for name in masked)
    doubled = {name: 2 * tensor for name, tensor in result.model.state_dict().items()}
    rows, columns = result.kept["4"], result.kept["0"]
    expected = masked["4.weight"].clone()
    expected[rows[:, None], columns] *= 2
    assert result.share < 1 and torch.equal(result.expand(doubled)["4.weight"], expected)
    assert not expanded["4.weight"][~masks["4.weight"]].any()
    with pytest.raises(InputError, match=r"'0\.weight' is absent or has another shape"):
        result.expand({**doubled, "0.weight": masked["0.weight"]})
    with pytest.raises(InputError, match="'extra' is absent"):
        result.expand({**doubled, "extra": masked["0.weight"]})


def test_compacting_twice_finds_nothing_more():
    model = disturbed(residual(), 0.3)
    once = compact(model, random_masks(model, 0.2, 3), SHAPE)
    twice = compact(once.model, once.masks, SHAPE)
    assert once.share < 1 == twice.share


def test_dtype_frozen_parameters_and_mode_are_kept():
    model = conv_chain().float().eval()
    model[0].weight.requires_grad_(False)
    small = compact(model, without(model, ("4.weight", (slice(None), 2))), SHAPE).model
    assert (
        small[0].weight.dtype == torch.float32 and not small[0].weight.requires_grad and small[4].weight.requires_grad
    )
    assert (
        not small.training and isinstance(small[1].running_var, torch.Tensor) and "1.running_var" in small.state_dict()
    )


class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Linear(4 * 64, 5)

    def forward(self, x):
        return self.last(self.first(x.view(-1, 3, 8, 8)).view(-1, 4 * 64))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.first(torch.relu(self.first(x)))


class Broadcasting(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 1, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.last(self.first(x) + self.second(x))


def tied():
    model = mlp(sizes=(192, 4, 4, 4))
    model[5].weight = model[3].weight
    return model


def parametrized(name):
    model = mlp(sizes=(192, 4, 4, 4))
    parametrize.register_parametrization(model[3], name, nn.Softplus())
    return model


def hooked():
    model = mlp(sizes=(192, 4, 4, 4))
    model[2].register_forward_hook(lambda module, inputs, output: output + 1)
    return model


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)), "no rule for ConvTranspose2d"),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.Conv2d(6, 2, 1)), "slope for every channel"),
        (nn.Sequential(nn.Conv2d(3, 6, 1), nn.Flatten(2), nn.Linear(64, 2)), "does not flatten everything"),
        (nn.Sequential(nn.Conv2d(3, 6, 1), nn.Linear(8, 2)), "not flat"),
        (Viewing(), r"use flatten\(1\)"),
        (Twice(), "same weights twice"),
        (tied(), "same weights twice"),
        (Broadcasting(), "different shapes"),
        (parametrized("weight"), "no plain parameter"),
        (parametrized("bias"), "no plain parameter"),
        (hooked(), "has a forward hook"),
    ],
)
def test_what_cannot_be_compacted_is_named(model, sentence):
    with pytest.raises(InputError, match=sentence):
        compact(model, full(model), SHAPE)


def test_masks_of_another_model_and_cuts_are_refused():
    model = conv_chain()
    with pytest.raises(InputError, match="belong to another model"):
        compact(model, full(mlp()), SHAPE)
    with pytest.raises(InputError, match="cut the network in two"):
        compact(disturbed(model), without(model, ("4.weight", ...)), SHAPE)


def test_synflow_compacts_and_random_pruning_does_not():
    """Live inputs times live outputs of each layer: the reference for chains."""
    model = models.build("vgg16", "cifar10", width=0.125)
    shares = {}
    for method in ("synflow", "random"):
        masks = prune(model, method, 10, input_shape=(3, 32, 32))
        shares[method] = compact(model, masks, (3, 32, 32)).share
    assert shares["synflow"] < 0.5 < 0.9 < shares["random"]
