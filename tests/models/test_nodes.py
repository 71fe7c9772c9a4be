"""Operations go by one name, however they are written, and what they read is noticed."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import Written

from synflow_lib.models.nodes import kind, kind_of, pools_over, reads_only
from synflow_lib.models.tracing import trace

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
    "how many positions": (lambda m, x: torch.clamp(x, 0, x.size(2)), 1, True),
    "how many positions, as a list": (lambda m, x: torch.clamp(x, 0, x.shape[2:]), 1, True),
    "how many channels": (lambda m, x: torch.clamp(x, 0, x.size(1)), 1, False),
    "how many of all": (lambda m, x: torch.clamp(x, 0, x.size()), 1, False),
    "no indices": (lambda m, x: F.max_pool1d(x, 2), 1, True),
    "indices": (lambda m, x: F.max_pool1d(x, 2, return_indices=True), 1, False),
}


def relu(x):
    """One's own, which is not PyTorch's."""
    return x - 1


ALIKE = {
    "relu": [nn.ReLU(), torch.relu, F.relu, torch.relu_, "relu", "relu_"],
    "maxpool": [nn.MaxPool1d(2), nn.MaxPool3d(2), F.max_pool2d],
    "adaptiveavgpool": [nn.AdaptiveAvgPool2d(1), F.adaptive_avg_pool2d],
    "add": [torch.add, operator.add, "add", "add_"],
    "logsoftmax": [nn.LogSoftmax(1), F.log_softmax, torch.log_softmax, "log_softmax"],
    "dropout": [nn.Dropout(), nn.Dropout2d(), F.dropout, F.dropout3d],
    "flatten": [nn.Flatten(), torch.flatten, torch.Tensor.flatten, "flatten"],
}


def test_an_operation_has_one_name_as_module_function_and_method():
    for name, operations in ALIKE.items():
        assert [kind(operation) for operation in operations] == [name] * len(operations)
    assert kind(relu) != "relu" and kind(type("ReLU", (nn.Module,), {})()) != "relu"


def test_poolings_tell_over_how_many_dimensions_they_go():
    pools = [nn.MaxPool1d(2), F.avg_pool2d, F.adaptive_max_pool3d, nn.AdaptiveAvgPool2d(1)]
    assert [pools_over(pool) for pool in pools] == [1, 2, 3, 2]
    assert [pools_over(other) for other in (nn.Conv2d(1, 1, 1), F.dropout2d, "view", relu)] == [None] * 4


def test_a_node_goes_by_what_computes_it():
    model = Written(lambda m, x: torch.relu(m.other(m.first(x))).view(-1))
    nodes = trace(model).nodes
    kinds = ["", "linear", "convtranspose", "relu", "view", ""]
    assert [kind_of(node, dict(model.named_modules())) for node in nodes] == kinds


@pytest.mark.parametrize("case", READ)
def test_what_else_an_operation_reads_is_noticed(case):
    code, number, alone = READ[case]
    *_, last, _ = trace(Written(code)).nodes
    assert reads_only(last, number) == alone
