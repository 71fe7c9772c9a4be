"""What people's networks do besides computing: checkpoint, remember, branch, reuse, change in place, wrap."""

import copy
import warnings
from collections import deque
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from synflow_lib.errors import InputError
from synflow_lib.models.flow_graph import flow_graph
from synflow_lib.models.tracing import operations
from synflow_lib.pruning import apply_masks, compact, connected, grasp, prunable, prune, snip, synflow
from synflow_lib.theory import assumptions
from synflow_lib.training.optim import idle_biases

SHAPE = (6,)
BATCHES = [(torch.randn(12, 6), torch.arange(12) % 3)]


class Chain(nn.Module):
    """Three layers; the second may be checkpointed."""

    def __init__(self, how=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.how = how

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x = self.second(x) if self.how is None else checkpoint(self.second, x, use_reentrant=self.how)
        return self.last(torch.relu(x))


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_checkpointing_changes_no_mask(method, scope):
    options = {"input_shape": SHAPE, "batches": BATCHES, "iterations": 4, "scope": scope}
    plain, checkpointed = (prune(Chain(how), method, 4, **options) for how in (None, False))
    assert plain == checkpointed


def test_checkpointing_changes_no_scores_of_a_masked_network():
    masks = prune(Chain(), "magnitude", 3)
    for saliency in (
        partial(snip, batches=BATCHES),
        partial(grasp, batches=BATCHES),
        partial(synflow, input_shape=SHAPE),
    ):
        scores, others = (saliency(Chain(how), masks) for how in (None, False))
        assert all(torch.equal(score, others[name]) for name, score in scores.items())
    assert assumptions(Chain(False).double(), SHAPE).worst == assumptions(Chain().double(), SHAPE).worst
    assert connected(Chain(False).half(), masks, SHAPE)


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_checkpointing_of_the_old_kind_is_refused_in_a_sentence(method):
    with pytest.raises(InputError, match="use_reentrant=False"):
        prune(Chain(True), method, 4, input_shape=SHAPE, batches=BATCHES)


class Remembering(nn.Module):
    """Keeps averages, counts and what it has made, in all the places where code puts such things."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("average", torch.full((8,), 2.0))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("cached", None, persistent=False)
        self.seen, self.nested = deque(maxlen=3), {"all": ([], {})}
        self.nested["self"] = self.nested

    def forward(self, x):
        h = torch.relu(self.first(x))
        self.average.mul_(0.9).add_(0.1 * h.detach().mean(0))
        self.calls += 1
        if self.cached is None:
            self.cached = torch.zeros(8) + 0.1
            self.late = nn.Identity()
        self.seen.append(h)
        self.nested["all"][0].append(h)
        self.nested["all"][1]["h"] = h
        self.features = h
        return self.last(h + self.cached)


USES = {
    "synflow": lambda m: prune(m, "synflow", 3, input_shape=SHAPE),
    "snip": lambda m: prune(m, "snip", 3, batches=BATCHES),
    "assumptions": lambda m: assumptions(m, SHAPE),
    "connected": lambda m: connected(m, prune(m, "random", 2), SHAPE),
    "operations": operations,
    "idle biases": lambda m: idle_biases(m.train()),
}


@pytest.mark.parametrize("use", USES)
def test_nothing_that_a_model_remembers_is_changed(use):
    model = Remembering()
    USES[use](model)
    assert bool((model.average == 2).all()) and int(model.calls) == 0 and model.cached is None
    assert not model.seen and model.nested["all"] == ([], {}) and model.nested["self"] is model.nested
    assert "features" not in vars(model) and "late" not in model._modules
    assert list(model.state_dict()) == list(Remembering().state_dict())


class Storing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        self.features = torch.relu(self.first(x))
        return self.last(self.features)


def test_a_model_that_holds_the_tensors_of_a_pass_can_be_made_smaller():
    model, masks = Storing(), prune(Storing(), "random", 2)
    x = torch.randn(5, 6)
    apply_masks(model, masks)
    wanted = model(x)
    assert not model.features.is_leaf
    small = compact(model, masks, SHAPE)
    assert model.features.grad_fn is not None
    assert torch.allclose(small.model(x), wanted, atol=1e-6)


class Two(nn.Module):
    """Has a second head, and an average that is stored alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.aside, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x):
        h = torch.relu(self.first(x))
        self.seen = self.pool(h)
        return self.last(h), self.aside(h)


class First(nn.Module):
    """What one writes for a network that returns more than one tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)[0]


@pytest.mark.parametrize("compression", [2, 8, 20])
def test_a_branch_that_nothing_reads_has_no_flow(compression):
    model = First(Two())
    with pytest.warns(UserWarning, match=r"model\.aside"):
        masks, once = (prune(model, "synflow", compression, input_shape=(2, 6, 6), iterations=n) for n in (100, 1))
    alone = nn.Sequential(model.model.first, nn.ReLU(), model.model.last)
    total = sum(weight.numel() for weight in prunable(alone).values())
    if masks.kept <= total:  # all of the branch goes first
        assert not masks["model.aside.weight"].any()
        expected = prune(alone, "synflow", total / masks.kept, input_shape=(2, 6, 6), schedule="linear", iterations=1)
        assert torch.equal(once["model.first.weight"], expected["0.weight"])
        assert torch.equal(once["model.last.weight"], expected["2.weight"])


class Reusing(nn.Module):
    """One BatchNorm behind two layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(2, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 3)
        self.norm = nn.BatchNorm2d(16)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.norm(self.second(x))).mean((2, 3)))


def test_a_normalisation_that_is_used_twice_can_be_pruned_around():
    model = Reusing().double()
    shape = (2, 8, 8)
    quick = prune(model, "synflow", 30, input_shape=shape)

    def plainly(network, masks, **_):
        return synflow(network, masks, input_shape=shape)

    assert quick == prune(model, plainly, 30, iterations=100)
    with pytest.raises(InputError, match="uses the same weights twice"):
        compact(model, quick, shape)


class InPlace(nn.Module):
    """Reads a value after it was changed in place."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.change, self.last, self.beside = nn.Linear(6, 8), change, nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        skip = x
        x = self.change(x)
        return self.last(torch.relu(x)) + self.beside(skip)


def grown(x):
    x += F.relu(x)
    return x


CHANGES = {
    "a sum": grown,
    "a method": lambda x: x.add_(F.relu(x)),
    "a function": lambda x: F.relu(x, inplace=True),
    "a flag": lambda x: F.relu(x, True),
    "a module": nn.ReLU(inplace=True),
    "nothing": F.relu,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_read_after_a_change_in_place_is_what_came_of_it(change):
    model = InPlace(CHANGES[change])
    masks = prune(model, "magnitude", 1.5)
    for weight in (masks["last.weight"], masks["beside.weight"]):
        weight[:, :3] = False
    masks["first.weight"][3] = False
    masked = apply_masks(copy.deepcopy(model), masks).double()
    small, x = compact(model, masks, SHAPE).model.double(), torch.randn(9, 6).double()
    assert torch.allclose(small(x), masked(x), atol=1e-12)
    places = {node.name: index for index, node in enumerate(operations(model).nodes)}
    beside = next(node for node in operations(model).nodes if node.target == "beside")
    changed = beside.args[0].target != "first"
    assert changed == (change != "nothing") and places[beside.args[0].name] < places["beside"]


class Asking(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.first, self.last, self.what = nn.Linear(6, 8), nn.Linear(8, 3), what

    def forward(self, x):
        h = torch.relu(self.first(x))
        if self.training and self.what:
            h = h + torch.tanh(h)
        return self.last(F.dropout(h, 0.5, self.training))


def test_code_that_does_something_else_in_train_mode_is_not_made_smaller():
    masks = prune(Asking(False), "random", 2)
    assert compact(Asking(False), masks, SHAPE).masks.kept <= masks.kept
    with pytest.raises(InputError, match="does something else in train mode"):
        compact(Asking(True), masks, SHAPE)


def test_a_forward_put_onto_a_layer_is_no_part_of_its_class():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].forward = lambda x: F.linear(x, model[0].weight).abs()
    with pytest.raises(InputError, match="'0' has a forward hook or a forward of its own"):
        flow_graph(model, SHAPE)

    def plainly(network, masks, **_):
        return synflow(network, masks, input_shape=SHAPE)

    assert prune(model, "synflow", 5, input_shape=SHAPE) == prune(model, plainly, 5, iterations=100)


def test_a_weight_that_is_computed_and_comes_out_negative_is_refused_by_synflow_alone():
    norms = nn.utils.parametrizations
    for made in (norms.spectral_norm, norms.orthogonal, nn.utils.spectral_norm):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), made(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3))
        with pytest.warns(UserWarning, match="'?2'? are no parameters"):
            prune(model, "snip", 2, batches=BATCHES)
        try:
            with pytest.warns(UserWarning, match="are no parameters"):
                masks = prune(model, "synflow", 2, input_shape=SHAPE)
        except InputError as error:
            assert "comes out negative" in str(error)  # or positive, by chance
        else:
            assert made is not norms.orthogonal and masks.collapsed() == []
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), norms.weight_norm(nn.Linear(8, 3)))
    with pytest.warns(UserWarning, match="are no parameters"):
        assert prune(model, "synflow", 2, input_shape=SHAPE).collapsed() == []


def test_synflow_with_options_of_its_own_still_makes_a_hundred_iterations():
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))
    assert prune(model, partial(synflow, bypass_norm=False), 50, input_shape=SHAPE) == prune(
        model, "synflow", 50, input_shape=SHAPE
    )


class Together(nn.Module):
    """Two inputs, one of them true or false, and more than one output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, y, present):
        h = torch.relu(self.first(x) + self.other(y).masked_fill(~present[:, None], 0))
        return {"classes": self.last(h), "features": h}


def own_loss(outputs, labels):
    return F.cross_entropy(outputs["classes"], labels) + outputs["features"].square().mean()


@pytest.mark.parametrize("saliency", [snip, grasp])
def test_a_loss_of_ones_own_takes_any_output_and_a_batch_several_inputs(saliency):
    inputs, labels = (torch.randn(12, 6), torch.randn(12, 6), torch.arange(12) % 2 == 0), torch.arange(12) % 3
    model = Together()
    whole = saliency(model, batches=[(inputs, labels)], loss=own_loss)
    loss = own_loss(model(*inputs), labels)
    grads = torch.autograd.grad(loss, list(prunable(model).values()), create_graph=True)
    if saliency is snip:
        expected = [(grad * weight).abs() for grad, weight in zip(grads, prunable(model).values(), strict=True)]
    else:
        along = sum((grad * grad.detach()).sum() for grad in grads)
        second = torch.autograd.grad(along, list(prunable(model).values()))
        expected = [grad * weight for grad, weight in zip(second, prunable(model).values(), strict=True)]
    for score, other in zip(whole.values(), expected, strict=True):
        assert torch.allclose(score, other, rtol=1e-4, atol=1e-7)
    halves = [(tuple(part[a:b] for part in inputs), labels[a:b]) for a, b in ((0, 4), (4, 12))]
    assert list(saliency(model, batches=halves, loss=own_loss)) == list(whole)
    with pytest.raises(InputError, match="must return one tensor"):
        saliency(model, batches=[(inputs, labels)])
    with pytest.raises(InputError, match=r"cannot take an input of shape \(12, 6\) and \(12, 6\)"):
        saliency(model, batches=[(inputs[:2], labels)], loss=own_loss)


def test_wrappers_and_weights_that_are_not_there_yet_are_told():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.LazyBatchNorm2d(), nn.ReLU())
    with pytest.raises(InputError, match=r"'1.weight' has no shape yet"):
        prune(model, "magnitude", 2)
    chain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch would rather export
        scripted, layer = (torch.jit.trace(module, torch.zeros(1, 6)) for module in (chain, nn.Linear(6, 6)))
    with pytest.raises(InputError, match=r"prune it before torch\.jit"):
        prune(scripted, "magnitude", 2)
    with pytest.raises(InputError, match=r"its \._orig_mod"):
        prune(torch.compile(chain), "magnitude", 2)
    part = nn.Sequential(layer, nn.ReLU(), nn.Linear(6, 3))
    assert prune(part, "synflow", 2, input_shape=SHAPE).kept == 9


def test_values_of_another_type_are_one_sentence():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(InputError, match="not '10'"):
        prune(model, "magnitude", "10")
    for wrong in (10.0, "10"):
        with pytest.raises(InputError, match="iterations must be a whole number, not"):
            prune(model, "magnitude", 2, iterations=wrong)


def test_without_gradients_there_are_no_scores():
    with torch.inference_mode(), pytest.raises(InputError, match="nference"):
        prune(Chain(), "synflow", 2, input_shape=SHAPE)
    model = Chain()
    model.forward = torch.no_grad()(model.forward)
    with pytest.raises(InputError, match="runs without gradients"):
        prune(model, "synflow", 2, input_shape=SHAPE)


class Waves(nn.Module):
    """A complex weight between two layers, as in Fourier neural operators."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.spectrum = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, x):
        return self.last(torch.fft.irfft(torch.fft.rfft(self.first(x)) * self.spectrum, n=8))


def test_complex_parameters_are_absolute_too():
    model, absolute = Waves(), Waves()
    with torch.no_grad():
        for parameter in absolute.parameters():
            parameter.copy_(parameter.abs())
    absolute(torch.ones(1, 6)).sum().backward()
    for name, score in synflow(model, input_shape=SHAPE).items():
        parameter = absolute.get_parameter(name)
        assert torch.allclose(score, (parameter * parameter.grad).abs(), rtol=1e-4)


def test_masks_are_equal_when_their_tensors_are():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    masks, others = prune(model, "magnitude", 2), prune(model, "magnitude", 3)
    assert masks == prune(model, "magnitude", 2) and masks == dict(masks)
    assert masks != others and masks != {} and masks != 1
    assert masks != {name: mask[:1] for name, mask in masks.items()}
