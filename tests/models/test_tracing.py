"""Tracing tells the operations of a model and leaves nothing behind in it."""

import io
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from toys import Written

from synflow_lib.errors import InputError
from synflow_lib.models.nodes import size_of
from synflow_lib.models.tracing import eval_mode, hooked, operations, trace


class Unreadable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Remembering(nn.Module):
    """Keeps what it computed, as code does that is looked into."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.calls, self.seen, self.named = 0, [], {}

    def forward(self, x):
        self.calls += 1
        self.features = torch.relu(self.first(x))
        self.first.output = self.features
        self.seen.append(self.features)
        self.named["features"] = self.features
        return self.last(self.features)


@pytest.mark.parametrize("wrong", [False, True])
def test_nothing_of_the_trace_stays_in_the_model(wrong):
    model = nn.Sequential(Remembering(), Unreadable() if wrong else nn.Identity())
    model[0].seen.append("before")
    before = [set(vars(module)) for module in model.modules()]
    with pytest.raises(InputError, match="cannot be traced") if wrong else nullcontext():
        trace(model)
    assert [set(vars(module)) for module in model.modules()] == before
    assert (model[0].calls, model[0].seen, model[0].named) == (0, ["before"], {})
    assert all(module.training for module in model.modules())
    if not wrong:
        torch.save(model, io.BytesIO())


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_every_module_gets_its_own_mode_back(error):
    model = nn.Sequential(nn.Dropout().eval(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout().eval()))
    before = [module.training for module in model.modules()]
    assert set(before) == {True, False}
    with pytest.raises(error) if error else nullcontext(), eval_mode(model):
        assert not any(module.training for module in model.modules())
        if error:
            raise error
    assert [module.training for module in model.modules()] == before


class Unlike(nn.Module):
    """Computes something else in eval mode."""

    def forward(self, x):
        return torch.relu(x) if self.training else torch.tanh(x)


def test_the_mode_decides_which_operations_there_are():
    model = Unlike()
    assert [node.target for node in operations(model).nodes][1] is torch.relu
    assert [node.target for node in trace(model).nodes][1] is torch.tanh and model.training


class Optional(nn.Module):
    """Takes more than the images, if it is given."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x, features=False, scale: float = 1.0, mask=None, *others, name="last", **settings):
        x = torch.relu(self.first(x))
        if mask is not None:
            x = x * mask
        if features or scale != 1:
            return x
        return self.last(x) if name == "last" else x


class Sized(nn.Module):
    """Takes something besides that is no plain value."""

    def forward(self, x, size=(1, 3)):
        return x.view(size)


def test_what_a_model_can_take_besides_is_at_its_default():
    graph = trace(Optional())
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "call_function", "call_module", "output"]
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["first", "last"]
    optional = trace(nn.Sequential(Optional(), nn.Linear(2, 2)))
    assert [node.op for node in optional.nodes].count("placeholder") == 1
    assert sum(node.op == "placeholder" for node in trace(Sized()).nodes) == 2


FLATTENED = {
    "a size": lambda m, x: x.view(x.size(0), -1),
    "a size by keyword": lambda m, x: x.view(x.size(dim=0), -1),
    "a shape": lambda m, x: x.reshape(x.shape[0], -1),
    "all sizes": lambda m, x: x.view(x.size()[0], -1),
    "a tuple": lambda m, x: x.view((x.size(0), -1)),
    "a list": lambda m, x: torch.reshape(x, [x.size(0), -1]),
    "the size of the input": lambda m, x: torch.relu(m.first(x)).view(x.size(0), -1),
}


@pytest.mark.parametrize("case", FLATTENED)
def test_a_reshape_that_keeps_the_batch_and_joins_the_rest_is_a_flattening(case):
    *_, last, _ = trace(Written(FLATTENED[case])).nodes
    assert last.target is torch.flatten and last.args[1:] == (1,) and not last.kwargs
    assert not any(size_of(node) for node in last.graph.nodes)


OTHERWISE = {
    "channels": lambda m, x: x.view(x.size(1), -1),
    "three": lambda m, x: x.view(x.size(0), -1, 2),
    "the first that is left": lambda m, x: x.view(-1, x.size(0)),
    "the size of what was reshaped": lambda m, x: x.view(-1, 2).view(x.size(0), -1),
    "the size of something else": lambda m, x: m.first(x).view(m.other(x).size(0), -1),
}


def test_the_batch_and_a_number_are_what_is_left_and_that_number():
    *_, last, _ = trace(Written(lambda m, x: m.first(x).view(x.size(0), 12))).nodes
    assert last.target == "view" and last.args[1:] == ((-1, 12),)
    assert not any(size_of(node) for node in last.graph.nodes)


@pytest.mark.parametrize("case", OTHERWISE)
def test_other_reshapes_stay_what_they_are(case):
    *_, last, _ = trace(Written(OTHERWISE[case])).nodes
    assert last.target == "view" and any(size_of(node) for node in last.graph.nodes)


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_modules_with_a_hook_are_named(kind):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU()))
    assert hooked(model) == []
    handles = [getattr(module, kind)(lambda *_: None) for module in (model, model[1][0])]
    assert hooked(model) == ["Sequential", "1.0"]
    for handle in handles:
        handle.remove()
    assert hooked(model) == []
