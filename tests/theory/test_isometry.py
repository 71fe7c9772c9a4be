"""The objective is the paper's, falls monotonically to its tolerance, and the masks are kept."""

from itertools import pairwise

import pytest
import torch
from fingerprint import fingerprint
from torch import nn
from torchvision.models import get_model
from toys import NETWORKS, SHAPE, batches, conv_chain, mlp, residual

from synflow_lib.errors import InputError
from synflow_lib.models import initialise
from synflow_lib.pruning import apply_masks, prunable, prune
from synflow_lib.theory import approximate_isometry, isometry, jacobians


def objective(model) -> torch.Tensor:
    """The sum of || W'W - I ||_F, written down once more, for linear layers and plain convolutions."""
    total = torch.zeros((), dtype=torch.float64)
    for weight in prunable(model).values():
        matrix = weight.permute(*range(2, weight.ndim), 1, 0).reshape(-1, weight.shape[0])  # [k k c_in, c_out]
        total = total + torch.linalg.norm(matrix.T @ matrix - torch.eye(matrix.shape[1]).to(matrix))
    return total


def plain_descent(model, masks, steps: int, lr: float = 0.1) -> list[float]:
    """The paper's procedure by autograd: constant steps, only kept weights move."""
    curve = [float(objective(model).detach())]
    for _ in range(steps):
        gradients = torch.autograd.grad(objective(model), list(prunable(model).values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(prunable(model).items(), gradients, strict=True):
                weight -= lr * gradient * masks[name]
        curve.append(float(objective(model).detach()))
    return curve


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", ["random", "snip"])
def test_the_objective_is_the_papers_and_falls_monotonically_and_the_masks_are_kept(network, method):
    model = NETWORKS[network]()
    masks = prune(model, method, 4, batches=batches())
    before = float(objective(apply_masks(model, masks)).detach())
    done = approximate_isometry(model, masks)
    assert done.converged and done.curve[0] == pytest.approx(before)
    assert done.curve[-1] == pytest.approx(float(objective(model).detach()))
    assert all(later <= earlier for earlier, later in pairwise(done.curve)) and done.curve[-1] < 0.7 * before
    for name, weight in prunable(model).items():
        assert not bool(weight.detach()[~masks[name]].any())
    assert (done.layers["after"] >= done.layers["floor"] - 1e-9).all()


def test_the_first_step_is_the_papers_and_the_end_is_no_worse_than_thousands_of_them():
    ours, theirs = mlp(), mlp()
    masks = prune(ours, "random", 5)
    apply_masks(ours, masks), apply_masks(theirs, masks)
    curve, done = plain_descent(theirs, masks, 2000), approximate_isometry(ours, masks, tolerance=1e-3)
    first = approximate_isometry(apply_masks(mlp(), masks), masks, steps=1)
    assert first.curve[1] == pytest.approx(curve[1])
    assert done.curve[-1] < 1.001 * min(curve) and len(done.curve) < 1500
    assert min(curve) < curve[-1]  # constant steps end by jumping about


@pytest.mark.parametrize("network", [mlp, conv_chain])
def test_unpruned_layers_become_isometries_to_1e_6(network):
    model = network()
    done = approximate_isometry(model, tolerance=1e-9)
    table = isometry.deviations(model)
    assert done.converged and done.curve[-1] < 1e-6
    assert (table[["min", "max"]] - 1).abs().to_numpy().max() < 1e-6
    if network is mlp:
        assert jacobians.layers(model, SHAPE)["std"].max() < 1e-6


@pytest.mark.parametrize("lr, scale", [(1e9, 1), (1e-6, 1), (0.1, 1e-3), (0.1, 1e-6)])
def test_a_step_that_is_far_too_long_or_too_short_is_no_convergence(lr, scale):
    """Nor is a start near zero weights, where the gradient vanishes and which is no minimum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)).double()
    for layer in (model[0], model[2]):
        layer.weight.detach().mul_(scale)
    found = approximate_isometry(model, lr=lr)
    assert found.converged and found.curve[-1] < 0.1 < 6 < found.curve[0]


def test_weights_of_zero_stay_there_and_end_the_search():
    model = nn.Linear(6, 4)
    nn.init.zeros_(model.weight)
    found = approximate_isometry(model)
    assert found.converged and len(found.curve) <= 101 and found.curve[-1] == found.curve[0] == 2


def test_a_layer_wider_than_its_inputs_reaches_its_floor():
    layer = nn.Linear(3, 8).double()
    done = approximate_isometry(layer)
    assert done.layers["floor"].item() == pytest.approx(5**0.5)
    assert done.curve[-1] == pytest.approx(5**0.5, rel=1e-4)


def test_layers_of_one_shape_are_solved_as_if_alone():
    torch.manual_seed(0)
    together = nn.Sequential(*(nn.Linear(20, 20) for _ in range(3))).double()
    alone = nn.Sequential(nn.Linear(20, 20)).double()
    alone.load_state_dict({k.replace("1.", "0."): v for k, v in together.state_dict().items() if k[0] == "1"})
    approximate_isometry(together, steps=37), approximate_isometry(alone, steps=37)
    torch.testing.assert_close(together[1].weight, alone[0].weight)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ConvTranspose2d(8, 4, 3),
        nn.ConvTranspose2d(8, 4, 3, groups=2),
        nn.Conv1d(4, 6, 5),
        nn.MultiheadAttention(8, 2),
    ],
)
def test_every_kind_of_layer_has_its_matrices(layer):
    model = nn.Sequential(layer).double()
    done = approximate_isometry(model, tolerance=1e-9)
    assert done.curve[-1] < 1e-6
    for weight in prunable(model).values():
        matrix = weight.detach()
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            first = matrix[: 8 // layer.groups]  # the inputs of the first group
            matrix = first.transpose(0, 1).flatten(1)
        elif isinstance(layer, nn.MultiheadAttention):
            matrix = matrix[:8]
        else:
            matrix = matrix[: len(matrix) // layer.groups].flatten(1)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)).to(matrix), atol=1e-6, rtol=0)


def test_only_the_kept_weights_change_and_a_module_of_any_kind_can_be_given():
    model = residual()
    masks = prune(model, "synflow", 10, input_shape=SHAPE)
    apply_masks(model, masks)
    others = {n: p.detach().clone() for n, p in model.named_parameters() if n not in masks}
    approximate_isometry(model, masks)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in others.items())


def test_it_needs_no_applied_masks_and_keeps_dead_layers_dead():
    model = mlp()
    masks = {name: mask & (name != "3.weight") for name, mask in prune(model, "random", 5).items()}
    done = approximate_isometry(model, masks)
    assert done.converged and not model.get_parameter("3.weight").any()
    row = done.layers.set_index("layer").loc["3"]
    assert row["before"] == row["after"] == pytest.approx(3.0) == row["floor"]  # nine outputs without an input


def test_a_torchvision_network_in_single_precision():
    torch.manual_seed(0)
    model = get_model("resnet18", num_classes=10, weights=None)
    masks = prune(model, "random", 1000)
    done = approximate_isometry(model, masks, steps=3)
    assert done.curve[-1] < done.curve[0] and len(done.layers) == 21 and not done.converged


@pytest.mark.parametrize("network", [conv_chain, residual])  # this one has a 1x1 convolution: one order in two ways
def test_the_memory_order_of_the_weights_makes_no_difference(network):
    plain, other = network(), network().to(memory_format=torch.channels_last)
    masks = prune(plain, "random", 3)
    assert not all(weight.is_contiguous() for weight in other.parameters())
    assert approximate_isometry(plain, masks).curve == pytest.approx(approximate_isometry(other, masks).curve)
    moved = other.state_dict()
    assert all(torch.allclose(weight, moved[name], rtol=1e-9) for name, weight in plain.state_dict().items())


def test_deviations_are_the_terms_and_the_singular_values():
    model = conv_chain()
    masks = prune(model, "magnitude", 3)
    table = isometry.deviations(model, masks)
    done = approximate_isometry(model, masks, steps=0)
    assert table["term"].tolist() == pytest.approx(done.layers["before"].tolist())
    assert table["floor"].tolist() == pytest.approx(done.layers["floor"].tolist())
    s = torch.linalg.svdvals(model[0].weight.detach().flatten(1))
    assert (table["mean"][0], table["max"][0]) == pytest.approx((float(s.mean()), float(s.max())))
    assert table["rms"][0] == pytest.approx(float((s**2 - 1).square().mean().sqrt()))


def test_orthogonal_weights_deviate_by_nothing_and_stay_as_they_are():
    model = initialise(mlp(), "orthogonal")
    before = fingerprint(model)
    assert isometry.deviations(model)["rms"].max() < 1e-12
    assert approximate_isometry(model, steps=0).converged is False
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": 0.0}, "lr > 0"),
        ({"steps": -1}, "steps >= 0"),
        ({"tolerance": 0.0}, "tolerance > 0"),
        ({"masks": {"0.weight": torch.ones(2)}}, "these masks belong to another model"),
    ],
)
def test_bad_input_is_one_sentence(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        approximate_isometry(mlp(), **settings)


def test_weights_that_are_no_numbers_are_refused_and_nothing_is_changed():
    model = mlp()
    with torch.no_grad():
        model.get_parameter("5.weight")[0, 0] = torch.nan
    before = fingerprint(model)
    with pytest.raises(InputError, match=r"5\.weight holds weights that are not finite"):
        approximate_isometry(model)
    assert fingerprint(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_masks_may_be_zeros_and_ones_of_any_kind(dtype):
    model, same = mlp(), mlp()
    masks = prune(model, "random", 4)
    converted = {name: mask.to(dtype) for name, mask in masks.items()}
    assert isometry.deviations(model, converted).equals(isometry.deviations(model, masks))
    assert approximate_isometry(model, converted, steps=3).curve == approximate_isometry(same, masks, steps=3).curve
    assert all(torch.equal(weight, prunable(same)[name]) for name, weight in prunable(model).items())


def test_deviations_of_weights_that_are_not_finite_are_one_sentence():
    model = mlp()
    with torch.no_grad():
        model[5].weight[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"5\.weight holds weights that are not finite"):
        isometry.deviations(model)


def test_the_projections_of_attention_on_other_widths_are_one_matrix_each():
    found = isometry.matrices(nn.MultiheadAttention(9, 3, kdim=4, vdim=6))
    assert {name: values.shape for name, (_, values, _) in found.items()} == {
        "q_proj_weight": (1, 9, 9), "k_proj_weight": (1, 4, 9), "v_proj_weight": (1, 6, 9), "out_proj.weight": (1, 9, 9)
    }  # fmt: skip
