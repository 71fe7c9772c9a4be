"""The theorems of the paper, in double precision: where they hold they hold to rounding, elsewhere they fail."""

import pandas as pd
import pytest
import torch
from torch import nn
from toys import CLASSES, NETWORKS, SHAPE, batches, conv_chain, everything, mlp, residual

from synflow_lib import models
from synflow_lib.errors import InputError
from synflow_lib.pruning import grasp, loss_saliency, magnitude, prunable, synaptic_saliency, synflow
from synflow_lib.theory import conservation, flow_graph

CONSERVING = {
    "synflow": lambda model: synflow(model, input_shape=SHAPE, parameters=everything(model)),
    "loss": lambda model: loss_saliency(model, batches=batches(), parameters=everything(model)),
    "logit": lambda model: synaptic_saliency(model, batches()[0][0], lambda outputs: outputs[:, 1].sum()),
}


def worst(model, saliency):
    return conservation.neurons(model, saliency, SHAPE)["error"].max()


@pytest.mark.parametrize("scalar", CONSERVING)
@pytest.mark.parametrize("network", NETWORKS)
def test_theorem_1_what_flows_into_a_hidden_unit_flows_out_of_it(network, scalar):
    model = NETWORKS[network]()
    table = conservation.neurons(model, CONSERVING[scalar](model), SHAPE)
    # The sums cancel: their rounding is that of their largest terms, not that of their own size.
    assert (table["into"] - table["out"]).abs().max() <= 1e-12 * table["out"].abs().max()
    assert table["out"].abs().max() > 0


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "mlp"])
def test_theorem_1_holds_in_the_networks_of_the_paper(name):
    model = models.build(name, "digits", width=0.125).double()
    table = conservation.neurons(
        model, synflow(model, input_shape=(3, 32, 32), parameters=everything(model)), (3, 32, 32)
    )
    assert table["error"].max() <= 1e-12
    hidden = {"vgg11": 8, "resnet18": 12, "mlp": 5}
    assert table["group"].nunique() == hidden[name]


def test_the_batch_norm_scale_passes_on_what_it_receives():
    model = conv_chain()
    table = conservation.neurons(model, CONSERVING["synflow"](model), SHAPE)
    assert torch.allclose(torch.tensor(table["scale"]), torch.tensor(table["into"]), rtol=1e-12)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity])
def test_homogeneous_activations_conserve(activation):
    assert worst(mlp(activation), CONSERVING["loss"](mlp(activation))) <= 1e-9


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.SiLU, nn.ELU])
def test_other_activations_do_not(activation):
    # By the loss: SynFlow sends only positive numbers, on which ELU, and in the limit GELU and SiLU, are linear.
    assert worst(mlp(activation), CONSERVING["loss"](mlp(activation))) > 0.01


def test_batch_norm_conserves_only_with_zero_means_and_zero_shifts_and_in_eval_mode():
    def error(change=lambda model: None, train_mode=False):
        model = conv_chain()
        change(model)
        saliency = loss_saliency(model, batches=batches(), parameters=everything(model), train_mode=train_mode)
        table = conservation.neurons(model, saliency, SHAPE)
        weights = table[table["group"] == "0"]  # the channels behind the first BatchNorm
        return ((weights["into"] - weights["out"]).abs() / weights["out"].abs().max()).max()

    assert error() <= 1e-12
    assert error(lambda model: model[1].running_var.fill_(4)) <= 1e-12
    assert error(lambda model: model[1].running_mean.fill_(0.5)) > 0.01
    assert error(train_mode=True) > 0.01


def test_magnitude_is_not_conserved():
    assert worst(mlp(), magnitude(mlp(), parameters=everything(mlp()))) > 0.3


def test_grasp_misses_conservation_by_the_difference_of_squared_gradients():
    # Rescaling a neuron (incoming by a, outgoing by 1/a) leaves the loss alone: <g, A theta> = 0 for all theta, with
    # A = +1 on incoming and -1 on outgoing. Differentiated along g: <Hg, A theta> = -<g, A g>.
    model = mlp()
    names = everything(model)
    saliency = grasp(model, batches=batches(), parameters=names)
    slopes = loss_saliency(model, batches=batches(), parameters=names)
    squared = {n: (slopes[n] / model.get_parameter(n).detach()) ** 2 for n in names}
    flow, force = (conservation.neurons(model, table, SHAPE) for table in (saliency, squared))
    residual = flow["into"] - flow["out"]
    predicted = force["out"] - force["into"]
    assert (residual - predicted).abs().max() <= 1e-12 * residual.abs().max()
    assert residual.abs().max() > 1e-6


@pytest.mark.parametrize("scalar", CONSERVING)
@pytest.mark.parametrize("network", NETWORKS)
def test_theorem_2_every_cut_carries_the_same_total(network, scalar):
    model = NETWORKS[network]()
    saliency = CONSERVING[scalar](model)
    graph = flow_graph(model, SHAPE)
    generator = torch.Generator().manual_seed(0)
    totals = torch.tensor(
        [conservation.cut_total(graph, saliency, conservation.random_cut(graph, generator)) for _ in range(20)]
    )
    scale = max(float(score.abs().sum()) for score in saliency.values())
    assert (totals.max() - totals.min()).item() <= 1e-6 * scale


def test_theorem_2_the_total_is_the_output_times_its_gradient():
    model, x = residual(), batches()[0][0]
    saliency = synaptic_saliency(model, x, lambda outputs: (outputs**3).sum())
    outputs = model.eval()(x).detach()
    expected = float((3 * outputs**2 * outputs).sum())  # <dR/dy, y>
    graph = flow_graph(model, SHAPE)
    side = conservation.random_cut(graph, torch.Generator().manual_seed(3))
    assert conservation.cut_total(graph, saliency, side) == pytest.approx(expected, rel=1e-12)


def test_layer_totals_are_equal_with_the_biases_of_all_later_layers_and_only_so():
    model = mlp()
    table = conservation.layer_totals(model, CONSERVING["synflow"](model), SHAPE)
    expected = float(
        torch.func.functional_call(
            model, {n: p.detach().abs() for n, p in model.named_parameters()}, torch.ones(1, *SHAPE).double()
        ).sum()
    )
    assert table["cut"].to_numpy() == pytest.approx([expected] * 4, rel=1e-12)
    assert table["naive"].max() / table["naive"].min() > 1.01
    own = table["naive"] - table["weights"]  # each layer's own biases, which together are all that the first cut has
    assert (own > 0).all() and own.sum() == pytest.approx(table["cut"][0] - table["weights"][0], rel=1e-12)
    assert table["size"].tolist() == [weight.numel() for weight in prunable(model).values()]


def test_a_layer_of_a_residual_network_is_no_cut():
    with pytest.raises(InputError, match="is no chain"):
        conservation.layer_totals(residual(), CONSERVING["synflow"](residual()), SHAPE)


def test_the_mean_score_of_a_layer_is_inversely_proportional_to_its_size():
    model = mlp(bias=False)
    scores = synflow(model, input_shape=SHAPE)
    means, total = conservation.layer_means(scores), float(next(iter(scores.values())).sum())
    assert (means["average_score"] / means["inverse_size"]).to_numpy() == pytest.approx([total] * 4)
    assert conservation.slope(means) == pytest.approx(1, abs=1e-12)
    assert means["layer"].tolist() == [name.removesuffix(".weight") for name in prunable(model)]
    assert (1 / means["inverse_size"]).round().tolist() == [weight.numel() for weight in prunable(model).values()]
    assert abs(conservation.slope(conservation.layer_means(magnitude(model))) - 1) > 0.1


def test_a_slope_is_the_exponent_of_a_power_law_and_layers_without_a_logarithm_are_left_out():
    sizes = pd.Series([1e-1, 1e-2, 1e-3, 1e-4])
    table = pd.DataFrame({"inverse_size": sizes, "average_score": 3 * sizes**0.4})
    assert conservation.slope(table) == pytest.approx(0.4, rel=1e-12)
    table.loc[[1, 2], "average_score"] = [0.0, -1.0]
    assert conservation.slope(table) == pytest.approx(0.4, rel=1e-12)
    with pytest.raises(InputError, match="at least two sizes"):
        conservation.slope(table.head(3))
    with pytest.raises(InputError, match="at least two sizes"):
        conservation.slope(table.assign(inverse_size=0.1, average_score=[1.0, 2.0, 3.0, 4.0]))
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="infinite or not a number"):
            conservation.slope(table.assign(average_score=[wrong, 1.0, 2.0, 3.0]))


def test_a_missing_weight_gives_one_sentence():
    with pytest.raises(InputError, match="there is no saliency for"):
        conservation.neurons(mlp(), {}, SHAPE)


@pytest.mark.parametrize("name", ["3.weight", "3.bias"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_saliency_that_is_no_number_hides_in_no_sum(name, wrong):
    saliency = CONSERVING["synflow"](mlp())
    saliency[name].view(-1)[0] = wrong
    for table in (conservation.neurons, conservation.layer_totals):
        with pytest.raises(InputError, match=f"the saliency of '{name}' is infinite or not a number"):
            table(mlp(), saliency, SHAPE)


def test_a_layer_that_is_used_twice_is_one_sentence():
    """Its saliency is that of both places together, and neither's."""
    again = nn.Linear(6, 6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), again, nn.ReLU(), again, nn.Linear(6, 2)).double()
    saliency, graph = CONSERVING["synflow"](model), flow_graph(model, SHAPE)
    for table in (conservation.neurons, conservation.layer_totals):
        with pytest.raises(InputError, match=r"^'2.weight' is used more than once"):
            table(model, saliency, SHAPE)
    with pytest.raises(InputError, match=r"^'2.weight' is used more than once"):
        conservation.cut_total(graph, saliency, conservation.random_cut(graph, torch.Generator()))


def test_relative_error_is_zero_where_nothing_flows():
    error = conservation.relative_error(pd.Series([0.0, 1.0, -2.0]), pd.Series([0.0, 2.0, -2.0]))
    assert error.tolist() == [0.0, 0.5, 0.0]


def test_violation_is_the_largest_difference_over_the_largest_flow_in():
    units = pd.DataFrame({"into": [-4.0, 1.0], "difference": [0.5, -2.0]})
    assert conservation.violation(units) == 0.5
    table = conservation.neurons(mlp(), magnitude(mlp(), parameters=everything(mlp())), SHAPE)
    assert (table["into"] - table["out"]).equals(table["difference"])


def test_networks_end_in_as_many_outputs_as_classes():
    assert flow_graph(residual(), SHAPE).sizes[flow_graph(residual(), SHAPE).output] == CLASSES


def behind_a_flattening() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(144), nn.ReLU(), nn.Linear(144, 3)).double()
    nn.init.uniform_(model[2].bias)
    return model


def normed_input() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    nn.init.uniform_(model[0].bias, 1, 2)
    return model


@pytest.mark.parametrize("network", [behind_a_flattening, normed_input])
def test_cuts_are_equal_with_batch_norm_on_the_input_and_behind_a_flattening(network):
    model, images = network().eval(), batches()[0][0]
    saliency = synaptic_saliency(model, images, parameters=everything(model))
    whole = float(model(images).sum().detach())
    assert conservation.layer_totals(model, saliency, SHAPE)["cut"].tolist() == pytest.approx([whole] * 2, rel=1e-12)
    graph = flow_graph(model, SHAPE)
    cut = conservation.random_cut(graph, torch.Generator().manual_seed(0))
    assert conservation.cut_total(graph, saliency, cut) == pytest.approx(whole, rel=1e-12)


def test_theorem_1_holds_behind_a_flattening_and_the_scale_lacks_the_shift():
    model = behind_a_flattening()
    saliency = CONSERVING["synflow"](model)
    table = conservation.neurons(model, saliency, SHAPE)
    assert table["error"].max() <= 1e-12 and len(table) == 4
    shift = saliency["2.bias"].view(4, 36).sum(1)
    torch.testing.assert_close(torch.tensor(table["scale"]), torch.tensor(table["into"]) - shift)


def test_a_network_without_hidden_units_is_one_sentence():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double()
    with pytest.raises(InputError, match="no hidden unit"):
        conservation.neurons(model, synflow(model, input_shape=SHAPE), SHAPE)
