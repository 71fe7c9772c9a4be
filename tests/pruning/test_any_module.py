"""What people's own modules have and ours have not: shared weights, unused layers, narrow numbers, odd shapes."""

import copy
import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torchvision.ops import FrozenBatchNorm2d

from synflow_lib.errors import InputError
from synflow_lib.models import initialise
from synflow_lib.pruning import (
    Masks,
    apply_masks,
    compact,
    connected,
    critical_compression,
    grasp,
    keep_best,
    loss_saliency,
    magnitude,
    prunable,
    prune,
    snip,
    synaptic_flow,
    synflow,
)
from synflow_lib.pruning.densities import layer_densities, ranked_densities


def chain(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def batch(features: int = 6, classes: int = 3, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, features, generator=generator), torch.arange(size) % classes


class Two(nn.Module):
    """Two layers in the way of the input, and one that is never used."""

    def __init__(self):
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.relu(self.first(x)))


class Tied(nn.Module):
    """An embedding and a head of one weight, the embedding first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.inner, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.inner(self.embedding(x.long()).mean(1))))


@pytest.mark.parametrize("method", ["random", "magnitude", "snip"])
def test_a_shared_weight_is_pruned_under_the_name_that_the_model_gives_it(method):
    model = Tied()
    assert list(prunable(model)) == ["inner.weight", "embedding.weight"]
    tokens = torch.arange(16).reshape(8, 2) % 7
    masks = prune(model, method, 2, batches=[(tokens.float(), torch.arange(8) % 7)])
    apply_masks(model, masks)
    assert torch.equal(model.head.weight != 0, masks["embedding.weight"]) and masks.kept == (16 + 28) / 2


def test_a_shared_weight_is_not_left_to_torch_prune():
    with pytest.raises(InputError, match="shared by modules"):
        prune(Tied(), "magnitude", 2).to_torch_prune(Tied())


def test_only_masks_of_weights_are_read_from_torch_prune():
    model = chain(6, 5, 3)
    model[0].register_buffer("causal_mask", torch.full((2, 2), -torch.inf))
    with pytest.raises(InputError, match="carries no masks"):
        Masks.from_torch_prune(model)
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    torch_prune.l1_unstructured(model[0], "bias", 0.5)
    assert list(Masks.from_torch_prune(model)) == ["0.weight"]


@pytest.mark.parametrize("score", [snip, grasp, loss_saliency])
def test_a_layer_that_is_not_used_scores_nothing(score):
    scores = score(Two(), batches=[batch()])
    assert not scores["unused.weight"].any() and scores["first.weight"].any()


def test_grasp_of_a_loss_that_is_linear_in_the_only_layer_is_nothing():
    scores = grasp(nn.Linear(6, 3), batches=[batch()], loss=lambda outputs, _: outputs.sum())
    assert not scores["weight"].any()


def test_batches_may_come_from_a_generator_once_and_prune_goes_through_them_often():
    model, data = chain(6, 8, 3), [batch(), batch(size=5)]
    known = prune(model, "snip", 4, iterations=3, batches=data)
    assert prune(model, "snip", 4, iterations=3, batches=iter(data)).overlap(known) == 1
    options = {"batches": data, "tolerance": 0.05}
    assert critical_compression(model, "snip", **{**options, "batches": iter(data)}) == critical_compression(
        model, "snip", **options
    )
    tables = [layer_densities(model, ["snip", "grasp"], [0.3], batches=given) for given in (data, iter(data))]
    assert tables[0].equals(tables[1])
    used = iter(data)
    snip(model, batches=used)
    with pytest.raises(InputError, match="generator"):
        snip(model, batches=used)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["magnitude", "snip", "synflow"])
def test_narrow_numbers_are_ranked(dtype, method):
    model, (x, y) = chain(6, 8, 3).to(dtype), batch()
    masks = prune(model, method, 4, input_shape=(6,), batches=[(x, y)], train_mode=method == "synflow", iterations=2)
    assert masks.kept == 18


def test_narrow_scores_give_densities():
    scores = {"a.weight": torch.arange(8).bfloat16(), "b.weight": torch.arange(2).bfloat16()}
    assert ranked_densities(scores, [0.5])["kept"].tolist() == [4, 0]


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (lambda scores: {name: score.T for name, score in scores.items()}, "have shape"),
        (lambda scores: {name: score.sum(1) for name, score in scores.items()}, "have shape"),
        (lambda scores: {}, "one score tensor per prunable weight"),
    ],
    ids=["transposed", "by row", "none"],
)
def test_scores_that_are_not_those_of_the_weights_are_refused(returned, sentence):
    with pytest.raises(InputError, match=sentence):
        prune(chain(6, 8, 3), lambda model, masks, **_: returned(magnitude(model, masks)), 2)


def test_whole_numbers_and_scores_with_a_gradient_are_ranked_too():
    model = chain(6, 8, 3)
    known = prune(model, "magnitude", 2)
    assert prune(model, lambda m, masks, **_: {n: w.abs() for n, w in prunable(m).items()}, 2).overlap(known) == 1
    whole = prune(model, lambda m, masks, **_: {n: (1000 * w.abs()).long() for n, w in prunable(m).items()}, 2)
    assert whole.overlap(known) > 0.9


def test_the_function_synflow_is_iterated_as_often_as_its_name_says():
    model = chain(6, 20, 20, 3)
    by_name = prune(model, "synflow", 20, input_shape=(6,))
    assert prune(model, synflow, 20, input_shape=(6,)).overlap(by_name) == 1
    assert prune(model, "synflow", 20, input_shape=(6,), iterations=1).overlap(by_name) < 1


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [({"0.weight": torch.ones(6)}, "has the shape"), ({"zz": torch.ones(6)}, "has no such parameter")],
)
def test_scores_refuse_masks_that_fit_no_weight(mask, sentence):
    with pytest.raises(InputError, match=sentence):
        snip(chain(6, 8, 3), mask, batches=[batch()])


def test_an_infinite_weight_that_is_pruned_disturbs_nothing():
    model = chain(6, 8, 3)
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    masks["0.weight"][2, 3] = False
    known = snip(model, masks, batches=[batch()])
    with torch.no_grad():
        model[0].weight[2, 3] = torch.inf
    assert all(torch.equal(score, known[name]) for name, score in snip(model, masks, batches=[batch()]).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_zeros_and_ones_of_any_type_are_masks(dtype):
    model = chain(6, 8, 3)
    masks = prune(model, "magnitude", 2)
    others = {name: mask.to(dtype) for name, mask in masks.items()}
    kept = keep_best(magnitude(model, others), others, 0.25)
    assert sum(int(mask.sum()) for mask in kept.values()) == 18
    assert connected(model, others, (6,))
    apply_masks(model, others)
    assert all(torch.equal(weight != 0, masks[name]) for name, weight in prunable(model).items())


class Call(nn.Module):
    """A chain with a function of tensors somewhere in it."""

    def __init__(self, function, behind: bool):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.function, self.behind = nn.Linear(6, 8), nn.Linear(8, 3), function, behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.a(x))
        return self.function(self.b(hidden)) if self.behind else self.b(self.function(hidden))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.layer_norm(x, x.shape[-1:]),
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: x.log_softmax(1),
        lambda x: x.softmax(1),
        lambda x: F.normalize(x),
    ],
    ids=["layer norm", "centred", "log softmax", "softmax", "length 1"],
)
@pytest.mark.parametrize("behind", [False, True])
def test_what_subtracts_does_not_hide_a_path(function, behind):
    model = Call(function, behind)
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    assert connected(model, masks, (6,))
    masks["a.weight"][:, 3:], masks["a.weight"][2:] = False, False
    assert connected(model, masks, (6,))
    masks["a.weight"][:] = False
    assert not connected(model, masks, (6,))


@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_frozen_batch_norm_of_another_library_is_the_identity_for_paths(mean):
    norm = FrozenBatchNorm2d(4)
    norm.running_mean.fill_(mean)
    norm.weight.fill_(-1)
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), norm, nn.ReLU(), nn.Conv2d(4, 2, 1, groups=2), nn.Flatten())
    assert connected(model, {n: torch.ones_like(w) for n, w in prunable(model).items()}, (3, 2, 2))


def test_a_network_that_no_path_is_found_through_is_named():
    model = Call(torch.sign, behind=False)
    with pytest.raises(InputError, match="no path leads through Call even with all of its weights"):
        connected(model, {n: torch.ones_like(w) for n, w in prunable(model).items()}, (6,))


def test_bad_arguments_of_the_search_are_sentences():
    with pytest.raises(InputError, match="tolerance must be a positive distance"):
        critical_compression(chain(6, 8, 3), "magnitude", tolerance=0)
    with pytest.raises(InputError, match="bypass_norm is for synflow"):
        critical_compression(chain(6, 8, 3), "magnitude", bypass_norm=True)


def test_a_layer_without_a_shape_and_a_second_input_are_sentences():
    with pytest.raises(InputError, match="has no shape yet"):
        prunable(nn.Sequential(nn.LazyLinear(3)))

    class Pair(Two):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x + y)

    with pytest.raises(InputError, match="cannot take an input of shape"):
        snip(Pair(), batches=[batch()])


def test_attention_with_other_keys_and_values_is_prunable_throughout():
    names = list(prunable(nn.MultiheadAttention(8, 2, kdim=4, vdim=5)))
    assert names == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    assert list(prunable(nn.MultiheadAttention(8, 2))) == ["in_proj_weight", "out_proj.weight"]


def test_a_normaliser_with_statistics_of_its_own_is_no_batch_norm():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_var", torch.ones(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / self.running_var.sqrt()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Root(), nn.ReLU(), nn.Linear(8, 3))
    assert prune(model, "synflow", 4, input_shape=(6,), bypass_norm=True).kept == 18


def test_a_computed_weight_is_not_drawn_silently():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3))
    before = model[2].weight.clone()
    with pytest.raises(InputError, match="'0' is computed from others"):
        initialise(model, "he")
    assert torch.equal(model[2].weight, before)


@pytest.mark.parametrize("made", ["weight norm", "torch prune", "buffer"])
def test_weights_that_are_no_parameters_stay_and_the_user_is_told(made):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    if made == "weight norm":
        parametrizations.weight_norm(model[0])
    elif made == "torch prune":
        torch_prune.identity(model[0], "weight")
    else:
        weight = model[0].weight.detach()
        del model[0].weight
        model[0].register_buffer("weight", weight)
    with pytest.warns(UserWarning, match="the weights of 0 are no parameters.* not pruned"):
        masks = prune(model, "magnitude", 3)
    assert list(masks) == ["2.weight"] and masks.kept == 5


@pytest.mark.parametrize(
    "other", [nn.LSTM(5, 4), nn.GRUCell(5, 4), nn.Bilinear(5, 5, 4)], ids=lambda x: type(x).__name__
)
def test_layers_that_are_never_pruned_are_named(other):
    model = nn.ModuleDict({"other": other, "head": nn.Linear(4, 3)})
    with pytest.warns(UserWarning, match="the weights of other are not pruned: convolutions"):
        masks = prune(model, "magnitude", 3)
    assert list(masks) == ["head.weight"] and masks.kept == 4


def test_a_model_that_is_wrapped_for_several_devices_is_to_be_unwrapped():
    model = nn.DataParallel(nn.Linear(6, 5))
    for method in ("magnitude", "synflow"):
        with pytest.raises(InputError, match=r"DataParallel only wraps a model: .* \.module"):
            prune(model, method, 3, input_shape=(6,))
    assert prune(model.module, "synflow", 3, input_shape=(6,)).kept == 10


class Remembers(nn.Module):
    """Keeps what it computed, and counts how often it was run."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.passes = nn.Linear(6, 6), nn.Linear(6, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features, self.passes = F.relu(self.first(x)), self.passes + 1
        return self.last(self.features)


@pytest.mark.parametrize("method", ["snip", "grasp", "synflow"])
def test_what_a_model_notes_of_its_passes_is_taken_back(method):
    model = Remembers()
    prune(model, method, 2, input_shape=(6,), batches=[batch()], train_mode=method == "synflow")
    assert "features" not in vars(model) and model.passes == 0
    model(batch()[0].detach())
    model.features = model.features.detach()
    known = model.features
    synflow(model, input_shape=(6,))
    copy.deepcopy(model)
    assert model.features is known and model.passes == 1


@pytest.mark.parametrize("shape", [6, (), (0,), (-6,), (6.0,), "6", None])
def test_a_shape_that_is_none_is_a_sentence(shape):
    model = chain(6, 8, 3)
    masks = prune(model, "magnitude", 2)
    for use in (
        lambda: prune(model, "synflow", 2, input_shape=shape),
        lambda: synflow(model, input_shape=shape),
        lambda: synaptic_flow(model, input_shape=shape),
        lambda: connected(model, masks, shape),
        lambda: compact(model, masks, shape),
    ):
        with pytest.raises(InputError, match=r"input_shape|the shape of one input"):
            use()


class Reader(nn.Module):
    """Classifies texts: tokens [B, T] looked up, one layer of attention, their mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embedding(x)).mean(1))


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.bag, self.head = nn.EmbeddingBag(11, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.bag(x))


TOKENS, TOPICS = torch.arange(30).reshape(6, 5) ** 2 % 11, torch.arange(6) % 3


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
@pytest.mark.parametrize("build", [Reader, Bag])
def test_tokens_stay_whole_numbers(build, kind):
    model = build().double()
    F.cross_entropy(model(TOKENS), TOPICS).backward()
    scores = snip(model, batches=[(TOKENS.to(kind), TOPICS)])
    for name, weight in prunable(model).items():
        torch.testing.assert_close(scores[name], (weight.grad * weight.detach()).abs())
    masks = prune(model, "grasp", 3, batches=[(TOKENS[:3], TOPICS[:3]), (TOKENS[3:], TOPICS[3:])])
    assert masks.kept == masks.total - int(masks.total * (1 - 1 / 3))


def test_a_path_through_a_network_that_reads_tokens_begins_at_its_embedding():
    for build in (Reader, Bag):
        model = build()
        weights, buffers = copy.deepcopy(model.state_dict()), model.training
        masks = dict(prune(model, "magnitude", 3))
        assert connected(model, masks, (5,))
        masks["head.weight"] = torch.zeros_like(masks["head.weight"])
        assert not connected(model, masks, (5,))
        assert all(torch.equal(weights[n], t) for n, t in model.state_dict().items()) and model.training == buffers
    tied = Tied()
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in prunable(tied).items()}
    assert connected(tied, masks, (5,))
    assert not connected(tied, masks | {"inner.weight": torch.zeros(4, 4, dtype=torch.bool)}, (5,))


def test_the_padding_has_no_gradient_and_the_other_tokens_have():
    model = nn.Sequential(nn.Embedding(3, 4, padding_idx=1), nn.Flatten(), nn.Linear(20, 2))
    masks = {"2.weight": torch.zeros(2, 20, dtype=torch.bool)}
    masks["2.weight"][0, 4:8] = True  # reads the second token alone: the padding
    assert not connected(model, masks, (5,))
    masks["2.weight"][0, 8] = True
    assert connected(model, masks, (5,))


class Rounded(nn.Module):
    """Its output has no gradient."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x).argmax(1, keepdim=True).double()


def test_a_network_without_gradients_has_no_path_to_be_found():
    with pytest.raises(InputError, match="no path leads through Rounded even with all"):
        connected(Rounded(), {"head.weight": torch.ones(3, 6, dtype=torch.bool)}, (6,))


class Placed(nn.Module):
    """Adds an embedding of the place to each number, so it has one and takes no tokens."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.place, self.head = nn.Embedding(6, 1), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.place(torch.arange(6)).flatten())


@pytest.mark.parametrize(
    ("build", "kind"), [(lambda: chain(6, 5, 3), torch.int64), (Placed, torch.uint8), (Placed, torch.float64)]
)
def test_whole_numbers_are_images_where_nothing_looks_them_up_and_bytes_everywhere(build, kind):
    images, labels = (batch()[0] * 50 + 100).clamp(0, 255).to(torch.uint8), batch()[1]
    model = build()
    found, expected = (snip(model, batches=[(images.to(x), labels)]) for x in (kind, torch.float32))
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_network_that_reads_tokens_is_told_where_synflow_can_begin():
    for ask in (synflow, synaptic_flow):
        with pytest.raises(InputError, match=r"whole numbers .* of the part behind it"):
            ask(Reader(), input_shape=(5,))
    with pytest.raises(InputError, match=r"whole numbers \(int64\)"):
        snip(Reader(), batches=[(TOKENS.float(), TOPICS)])
    behind = nn.Sequential(Reader().block, Reader().head)
    assert prune(behind, "synflow", 4, input_shape=(5, 8)).compression >= 4


def pixels(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of every pixel but those of class 255."""
    return F.cross_entropy(outputs, labels, ignore_index=255)


def following(outputs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Every token from those before it."""
    return F.cross_entropy(outputs[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class Speaker(Reader):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.block(self.embedding(x)), self.embedding.weight)


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(4, (5, 8, 8), generator=generator)
    classes[0, :2] = 255
    return torch.randn(5, 3, 8, 8, generator=generator), classes


OWN = {
    "pixels": (segmenter, scene, pixels),
    "tokens": (Speaker, lambda: (TOKENS, TOKENS), following),
    "numbers": (lambda: chain(6, 5, 2), lambda: (batch()[0], batch(2)[0][:, :2]), F.mse_loss),
    "one number": (lambda: chain(6, 5, 1), lambda: (batch()[0], batch()[0][:, :1]), F.l1_loss),
    "several labels": (
        lambda: chain(6, 5, 3),
        lambda: (batch()[0], batch(3)[0] > 0),
        lambda outputs, labels: F.binary_cross_entropy_with_logits(outputs, labels.double()),
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_a_loss_of_ones_own_reads_outputs_and_labels_of_any_shape(case):
    build, data, loss = OWN[case]
    model, (x, y) = build().double(), data()
    given = x.double() if x.is_floating_point() else x
    loss(model(given), y.double() if y.is_floating_point() else y).backward()
    weights = prunable(model)
    expected = {n: w.grad * w.detach() if w.grad is not None else torch.zeros_like(w) for n, w in weights.items()}
    scores = loss_saliency(model, batches=[(x, y)], loss=loss)
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name])
    for method in (snip, grasp):
        masks = prune(model, functools.partial(method, loss=loss), 2, batches=[(x, y)])
        assert masks.kept == masks.total - masks.total // 2


@pytest.mark.parametrize(
    ("loss", "labels", "sentence"),
    [
        ("supervised", scene()[1], "labels must be integers of shape"),
        ("supervised", torch.zeros(5, dtype=torch.long), "pass a function .* as loss"),
        ("uniform", None, "the loss uniform needs outputs of shape"),
        (pixels, scene()[1][:4], r"labels must be of shape \[B, \.\.\.\]"),
        (pixels, torch.tensor(3), r"labels must be of shape \[B, \.\.\.\]"),
    ],
)
@pytest.mark.parametrize("method", [snip, grasp])
def test_what_does_not_fit_the_loss_gives_one_sentence(method, loss, labels, sentence):
    with pytest.raises(InputError, match=sentence):
        method(segmenter(), batches=[(scene()[0], labels)], loss=loss)
