"""Tracing tells the operations of a model and leaves nothing behind in it."""

import io
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from synflow_lib.errors import InputError
from synflow_lib.models.tracing import eval_mode, hooked, operations, reads_only, trace


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


READ = {
    "a layer": (lambda m, x: m.first(x), 1, True),
    "a layer by keyword": (lambda m, x: m.first(input=x), 1, False),
    "a known keyword": (lambda m, x: torch.flatten(x, start_dim=1), 1, True),
    "an unknown keyword": (lambda m, x: torch.softmax(x, 1, dtype=torch.float64), 1, False),
    "a sum": (lambda m, x: x + m.first(x), 2, True),
    "a sum with a factor": (lambda m, x: torch.add(x, m.first(x), alpha=2), 2, False),
    "another tensor among the rest": (lambda m, x: torch.clamp(x, 0, x), 1, False),
    "tensors in a list": (lambda m, x: torch.cat([x, m.first(x)]), 2, False),
    "one tensor of two": (lambda m, x: torch.relu(x), 2, False),
    "a layer that is told a size": (lambda m, x: m.other(x, [4]), 1, False),
}


class Written(nn.Module):
    """Two layers and code that is given."""

    def __init__(self, code):
        super().__init__()
        self.first, self.other, self.code = nn.Linear(3, 3), nn.ConvTranspose1d(3, 3, 2), code

    def forward(self, x):
        return self.code(self, x)


@pytest.mark.parametrize("case", READ)
def test_what_else_an_operation_reads_is_noticed(case):
    code, number, alone = READ[case]
    *_, last, _ = trace(Written(code)).nodes
    assert reads_only(last, number) == alone


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_modules_with_a_hook_are_named(kind):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU()))
    assert hooked(model) == []
    handles = [getattr(module, kind)(lambda *_: None) for module in (model, model[1][0])]
    assert hooked(model) == ["Sequential", "1.0"]
    for handle in handles:
        handle.remove()
    assert hooked(model) == []
