"""Connectivity is that of the graph of weights, layers give out at critical compression, shares are those of R."""

import numpy as np
import pytest
import torch
from torch import nn
from toys import NETWORKS, SHAPE, batches, conv_chain, mlp, residual

from synflow_lib.errors import InputError
from synflow_lib.pruning import (
    SALIENCIES,
    SCHEDULES,
    Masks,
    collapse,
    connected,
    critical_compression,
    critical_compressions,
    keep_best,
    prunable,
    prune,
    pruned_to_flow,
    rho_max,
    synaptic_flow,
    synflow,
)


def full(model):
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}


def without(model, *names):
    return Masks({name: mask & (name not in names) for name, mask in full(model).items()})


@pytest.mark.parametrize("network", NETWORKS)
def test_a_whole_network_is_connected_and_is_left_as_it_was(network):
    model = NETWORKS[network]().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert connected(model, without(model), SHAPE)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("network", ["mlp", "conv_chain"])
def test_a_chain_is_cut_by_any_empty_layer(network):
    model = NETWORKS[network]()
    assert not any(connected(model, without(model, name), SHAPE) for name in prunable(model))


def test_a_residual_network_survives_the_loss_of_a_branch_but_not_of_both():
    model = residual()
    assert connected(model, without(model, "inner.weight", "outer.weight"), SHAPE)
    assert connected(model, without(model, "shortcut.weight"), SHAPE)
    assert connected(model, without(model, "last.weight"), SHAPE)
    assert not connected(model, without(model, "last.weight", "shortcut.weight"), SHAPE)
    assert not connected(model, without(model, "stem.weight"), SHAPE)


def test_layers_with_weights_that_do_not_meet_are_cut():
    model = mlp(sizes=(192, 4, 3))
    masks = {name: torch.zeros_like(mask) for name, mask in full(model).items()}
    masks["1.weight"][0, 0] = masks["3.weight"][1, 1] = masks["5.weight"][2, 1] = True
    assert not Masks(masks).collapsed() and not connected(model, masks, SHAPE)
    masks["3.weight"][1, 0] = True
    assert connected(model, masks, SHAPE)


@pytest.mark.parametrize("network", NETWORKS)
def test_both_ways_to_follow_paths_agree(network, monkeypatch):
    model = NETWORKS[network]()
    drawn = [prune(model, "random", 30, seed=seed) for seed in range(40)]
    quick = [connected(model, masks, SHAPE) for masks in drawn]
    monkeypatch.setattr("synflow_lib.pruning.collapse.path_exists", lambda *_: None)
    verdicts = [connected(model, masks, SHAPE) for masks in drawn]
    assert verdicts == quick and len(set(verdicts)) == 2


def test_connectivity_agrees_with_a_walk_over_the_weights():
    model = mlp(sizes=(192, 6, 6, 6), bias=True)
    verdicts = set()
    for seed in range(40):
        masks = prune(model, "random", 192 * 6 / 25, seed=seed)
        reach = torch.ones(192, dtype=torch.bool)
        for mask in masks.values():
            reach = (mask & reach).any(1)
        verdicts.add(bool(reach.any()))
        assert connected(model, masks, SHAPE) == bool(reach.any()), seed
    assert verdicts == {True, False}


def test_depth_does_not_hide_a_path():
    deep = mlp(bias=False, sizes=(192, *(30,) * 300))
    assert connected(deep, without(deep), SHAPE)
    assert not connected(deep, without(deep, "301.weight"), SHAPE)


def test_zero_batch_norm_scales_do_not_look_like_a_cut():
    model = conv_chain()
    nn.init.zeros_(model[1].weight)
    assert connected(model, without(model), SHAPE)


@pytest.mark.parametrize("method", ["random", "magnitude", "snip"])
def test_critical_compression_is_where_the_first_layer_empties(method):
    model = conv_chain()
    options = {"batches": batches(), "input_shape": SHAPE}
    critical = critical_compression(model, method, tolerance=1e-3, **options)
    assert 1 <= critical < rho_max(model)
    masks = prune(model, method, critical, **options)
    assert not masks.collapsed() and masks.compression == critical
    assert prune(model, method, masks.total / (masks.kept - 1), **options).collapsed()


def test_the_bisection_finds_the_rank_of_the_weakest_layers_best_weight():
    # Single-shot: the network collapses as soon as the layer whose best score is lowest loses that weight.
    model = mlp()
    scores = torch.cat([weight.detach().abs().flatten() for weight in prunable(model).values()])
    weakest = min(weight.detach().abs().max() for weight in prunable(model).values())
    exact = len(scores) / int((scores >= weakest).sum())
    assert critical_compression(model, "magnitude", tolerance=1e-4) == pytest.approx(exact, rel=1e-3)


def test_synflow_with_enough_iterations_has_maximal_critical_compression():
    model = mlp(sizes=(192, 4, 3), bias=False)
    weights = prunable(model)
    removed = sum(weight.numel() for weight in weights.values()) - len(weights)
    critical = critical_compression(model, "synflow", input_shape=SHAPE, iterations=4 * removed)
    assert critical == rho_max(model)


def test_the_signal_criterion_is_never_reached_before_the_layers_of_a_chain_are_whole():
    model = conv_chain()
    layer = critical_compression(model, "random", input_shape=SHAPE)
    signal = critical_compression(model, "random", criterion="signal", input_shape=SHAPE)
    assert signal <= layer * 10**0.01


def test_a_criterion_that_cannot_be_used_gives_one_sentence():
    with pytest.raises(InputError, match="unknown criterion 'paths'"):
        critical_compression(mlp(), "random", criterion="paths")
    with pytest.raises(InputError, match="pass input_shape"):
        critical_compression(mlp(), "random", criterion="signal")


def test_both_criteria_in_one_search_give_what_each_gives_alone(monkeypatch):
    model, options = conv_chain(), {"batches": batches(), "input_shape": SHAPE, "iterations": 3, "tolerance": 0.05}
    alone = {c: critical_compression(model, "snip", criterion=c, **options) for c in ("layer", "signal")}
    pruned = []
    original = collapse.prune
    monkeypatch.setattr(collapse, "prune", lambda m, s, rho, **o: pruned.append(rho) or original(m, s, rho, **o))
    assert critical_compressions(model, "snip", **options) == alone
    assert len(pruned) == len(set(pruned))


@pytest.mark.parametrize("method", ["snip", "grasp"])
def test_an_iterated_search_scores_the_whole_network_once_and_finds_what_it_found_without(method, monkeypatch):
    model, whole = conv_chain(), []

    def counted(model, masks, **options):
        whole.append(all(bool(mask.all()) for mask in masks.values()))
        return SALIENCIES[method](model, masks, **options)

    options = {"batches": batches(), "input_shape": SHAPE, "iterations": 3, "tolerance": 0.05}
    found = critical_compressions(model, counted, **options)
    assert whole.count(True) == 1 and len(whole) > 8
    monkeypatch.setattr(collapse, "scored_once", lambda method, _: method)
    assert critical_compressions(model, method, **options) == found


def by_definition(model, compression, shape, n, schedule):
    """Score, remove, divide what was removed by the flow before, with nothing shared between iterations."""
    masks, ratios = {name: weight.detach() == weight for name, weight in prunable(model).items()}, []
    for k in range(1, n + 1):
        scores, flow = synflow(model, masks, input_shape=shape), synaptic_flow(model, masks, input_shape=shape)
        kept = keep_best(scores, masks, SCHEDULES[schedule](k, n, compression))
        ratios.append(sum(float(scores[name][masks[name] & ~kept[name]].sum()) for name in scores) / flow)
        masks = kept
    return ratios


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_quick_ratios_are_those_of_the_definition(network, schedule):
    model = NETWORKS[network]()
    quick = pruned_to_flow(model, 20.0, input_shape=SHAPE, iterations=7, schedule=schedule)
    np.testing.assert_allclose(quick, by_definition(model, 20.0, SHAPE, 7, schedule), rtol=1e-12)


def test_a_network_that_is_run_as_it_is_gives_the_same_ratios(monkeypatch):
    model = NETWORKS["residual"]()
    quick = pruned_to_flow(model, 20.0, input_shape=SHAPE, iterations=7)
    monkeypatch.setattr("synflow_lib.pruning.flow_network.program", lambda *_: None)
    np.testing.assert_allclose(pruned_to_flow(model, 20.0, input_shape=SHAPE, iterations=7), quick, rtol=1e-12)


def test_nothing_removed_is_no_flow_removed_and_impossible_plans_are_sentences():
    model = NETWORKS["mlp"]()
    assert pruned_to_flow(model, 1.0, input_shape=SHAPE, iterations=3) == [0.0] * 3
    with pytest.raises(InputError, match="iterations must be at least 1, not 0"):
        pruned_to_flow(model, 10.0, input_shape=SHAPE, iterations=0)
    with pytest.raises(InputError, match="compression must be a ratio from 1 to rho_max"):
        pruned_to_flow(model, 0.5, input_shape=SHAPE, iterations=1)
    with pytest.raises(InputError, match="unknown schedule 'cosine'"):
        pruned_to_flow(model, 10.0, input_shape=SHAPE, iterations=1, schedule="cosine")
