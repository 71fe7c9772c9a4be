"""Masks are values: counted, saved, shuffled, refused where they do not belong."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toys import NETWORKS, conv_chain, mlp, residual

from synflow_lib.errors import InputError
from synflow_lib.pruning import Masks, apply_masks, prunable, prune


@pytest.fixture
def masks():
    return prune(residual(), "random", 3)


def same(first, second):
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_counts_agree_with_the_tensors(masks):
    kept, total = (
        sum(int(x) for x in column) for column in zip(*((m.sum(), m.numel()) for m in masks.values()), strict=True)
    )
    assert (masks.kept, masks.total) == (kept, total)
    assert masks.compression == total / kept and masks.density == kept / total
    table = masks.layers()
    assert table["kept"].sum() == kept and table["size"].sum() == total
    assert table["layer"].tolist() == [name.removesuffix(".weight") for name in masks]


def test_only_zero_and_one_make_a_mask():
    assert Masks({"a": torch.tensor([0.0, 1.0])})["a"].tolist() == [False, True]
    with pytest.raises(InputError, match="other than 0 and 1"):
        Masks({"a": torch.tensor([0.0, 0.5])})
    with pytest.raises(TypeError):
        Masks({"a": torch.ones(2)})["a"] = torch.zeros(2)


def test_collapsed_names_the_layers_that_lost_everything(masks):
    assert masks.collapsed() == []
    emptied = Masks({name: mask & (name != "shortcut.weight") for name, mask in masks.items()})
    assert emptied.collapsed() == ["shortcut"]
    assert Masks({"a": torch.zeros(3)}).compression == float("inf")


def test_apply_masks_sets_pruned_weights_to_zero_and_leaves_the_rest(masks):
    model, twin = residual(), residual()
    with torch.no_grad():
        model.stem.weight[~masks["stem.weight"]] = torch.inf  # even what a product could not clear
    assert apply_masks(model, masks) is model
    for name, weight in prunable(model).items():
        assert torch.equal(weight, prunable(twin)[name] * masks[name])
    assert torch.equal(model.stem.bias, twin.stem.bias)


def test_masks_survive_a_file_in_the_order_of_the_model(masks, tmp_path):
    path = masks.save(tmp_path / "new folder" / "masks.safetensors")
    assert same(Masks.load(path), masks)
    assert [file.name for file in path.parent.iterdir()] == ["masks.safetensors"]


def test_a_file_that_holds_no_masks_gives_one_sentence(masks, tmp_path):
    with pytest.raises(InputError, match="there is no mask file"):
        Masks.load(tmp_path / "absent.safetensors")
    path = masks.save(tmp_path / "masks.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is no mask file, or is damaged"):
        Masks.load(path)
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="holds no masks"):
        Masks.load(tmp_path / "weights.safetensors")


def test_a_folder_that_cannot_be_written_gives_one_sentence(masks, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        masks.save(tmp_path / "file" / "masks.safetensors")


def test_a_mask_file_may_be_read_by_whom_the_umask_says(masks, tmp_path):
    (tmp_path / "plain").touch()
    assert masks.save(tmp_path / "masks").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_masks_of_another_model_are_refused_before_anything_changes(masks):
    model = conv_chain()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="belong to another model"):
        apply_masks(model, masks)
    narrow = Masks({name: mask[:1] if name == "0.weight" else mask for name, mask in prune(model, "random", 2).items()})
    with pytest.raises(InputError, match="has shape"):
        apply_masks(model, narrow)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_shuffling_keeps_the_number_in_every_layer_and_moves_the_places(masks):
    shuffled = masks.shuffled(seed=1)
    assert shuffled.layers().equals(masks.layers())
    assert same(shuffled, masks.shuffled(seed=1)) and not same(shuffled, masks.shuffled(seed=2))
    assert not any(torch.equal(shuffled[name], masks[name]) for name in masks)


def test_overlap_is_intersection_over_union(masks):
    first, second = Masks({"a": torch.tensor([1, 1, 0, 0])}), Masks({"a": torch.tensor([0, 1, 1, 0])})
    assert first.overlap(second) == second.overlap(first) == 1 / 3
    assert masks.overlap(masks) == 1 and Masks({"a": torch.zeros(2)}).overlap(Masks({"a": torch.zeros(2)})) == 1
    with pytest.raises(InputError, match="masks of the same model"):
        masks.overlap(first)


@pytest.mark.parametrize("network", NETWORKS)
def test_masks_go_to_torch_prune_and_back(network):
    model = NETWORKS[network]()
    masks = prune(model, "random", 3)
    masks.to_torch_prune(model)
    x = torch.ones(1, 3, 8, 8).double()
    expected = apply_masks(NETWORKS[network](), masks).eval()(x)
    assert torch.equal(model.eval()(x), expected)
    assert same(Masks.from_torch_prune(model), masks)


def test_only_masks_of_weights_are_read_from_torch_prune():
    model = mlp()
    masks = prune(model, "random", 3)
    masks.to_torch_prune(model)
    torch.nn.utils.prune.random_unstructured(model[1], "bias", 0.5)
    model.register_buffer("causal_mask", torch.ones(2, 2))
    model[1].register_buffer("weight_of_a_mask", torch.ones(2, 2))
    assert same(Masks.from_torch_prune(model), masks)


def test_a_weight_that_modules_share_is_not_given_to_torch_prune():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(InputError, match=r"'0\.weight' is shared by modules"):
        prune(model, "random", 2).to_torch_prune(model)
    assert not list(model.named_buffers())


@pytest.mark.parametrize("change, sentence", [
    (lambda masks: {**masks, "9.weight": torch.ones(2, 2)}, "'9.weight' is not in the model"),
    (lambda masks: dict(list(masks.items())[1:]), "'1.weight' is not in the masks"),
])  # fmt: skip
def test_where_masks_and_model_differ_is_said(change, sentence):
    model = mlp()
    with pytest.raises(InputError, match=sentence):
        apply_masks(model, Masks(change(prune(model, "random", 2))))


def test_a_model_without_torch_masks_gives_one_sentence():
    with pytest.raises(InputError, match="carries no masks"):
        Masks.from_torch_prune(nn.Sequential(mlp()))


def test_masks_say_what_they_are():
    assert repr(Masks({"a": torch.tensor([1, 0, 0, 0])})) == "Masks(1 layers, 1 of 4 weights kept, compression 4)"


@pytest.mark.parametrize("order", [None, "3", "[", '["a"]', '["a", "b", "b"]', '["a", "b", "c"]'])
def test_a_mask_file_whose_order_is_none_is_damaged_and_loses_no_layer(order, tmp_path):
    path = tmp_path / "masks.safetensors"
    metadata = {"format": "synflow masks"} | ({} if order is None else {"order": order})
    save_file({name: torch.ones(2, dtype=torch.bool) for name in "ab"}, path, metadata)
    with pytest.raises(InputError, match="is no mask file, or is damaged"):
        Masks.load(path)
