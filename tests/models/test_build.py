"""The networks have the sizes that the authors' code gives them, to the unit."""

import pytest
import torch

from synflow_lib import models
from synflow_lib.errors import InputError
from synflow_lib.models.resnet import cifar_resnet
from synflow_lib.pruning import prunable

COUNTS = {  # model: (prunable weights on cifar10, cifar100, tiny-imagenet), (tensors on CIFAR, on Tiny ImageNet)
    "vgg11": ((9_222_848, 9_268_928, 12_568_256), (9, 11)),
    "vgg16": ((14_715_584, 14_761_664, 18_060_992), (14, 16)),
    "resnet18": ((11_164_352, 11_210_432, 11_261_632), (21, 21)),
    "wide_resnet18_published": ((11_164_352, 11_210_432, 11_261_632), (21, 21)),
}
DATA = ("cifar10", "cifar100", "tiny-imagenet")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("column", range(3))
def test_prunable_weights_and_tensors_are_those_of_the_published_networks(name, column):
    weights = prunable(models.build(name, DATA[column]))
    sizes, tensors = COUNTS[name]
    assert sum(weight.numel() for weight in weights.values()) == sizes[column]
    assert len(weights) == tensors[column == 2]


def test_vgg19_at_imagenet_size_has_its_143_million_weights_in_19_tensors():
    with torch.device("meta"):
        from synflow_lib.models.vgg import vgg19

        weights = prunable(vgg19((3, 224, 224), 1000))
    assert sum(weight.numel() for weight in weights.values()) == 143_652_544
    assert len(weights) == 19


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "resnet18", "wide_resnet18", "mlp"])
@pytest.mark.parametrize("dataset", ["digits", "tiny-imagenet"])
def test_a_narrow_network_maps_images_to_class_scores(name, dataset):
    model = models.build(name, dataset, width=0.125).eval()
    spec = models.DATASETS[dataset]
    assert model(torch.zeros(2, *spec.input_shape)).shape == (2, spec.classes)


def test_wide_resnet_is_really_twice_as_wide_and_the_published_one_is_not():
    wide, plain = models.build("wide_resnet18", width=0.25), models.build("resnet18", width=0.25)
    published = models.build("wide_resnet18_published", width=0.25)
    for (_, w), (_, p) in zip(wide.named_parameters(), plain.named_parameters(), strict=True):
        assert w.shape[0] in (2 * p.shape[0], 10)
    for (_, w), (_, p) in zip(published.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(w, p)


def test_the_seed_decides_the_weights_and_the_global_random_state_is_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (models.build("vgg11", "digits", width=0.125, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.classifier[0].weight, other.classifier[0].weight)


def check_std(weight, expected):
    # The standard deviation of n normal numbers is known to about 1/sqrt(2n): five of those.
    assert weight.std().item() == pytest.approx(expected, rel=5 / (2 * weight.numel()) ** 0.5)


def test_cifar_vgg_starts_from_kaiming_fan_in_with_zero_biases():
    model = models.build("vgg11", "cifar10")
    for name, weight in prunable(model).items():
        check_std(weight.detach(), (2 / weight[0].numel()) ** 0.5)
        assert not model.get_parameter(name.replace("weight", "bias")).any()


def test_tiny_imagenet_vgg_starts_from_fan_out_and_a_classifier_of_deviation_one_hundredth():
    for name, weight in prunable(models.build("vgg11", "tiny-imagenet", width=0.25)).items():
        fan_out = weight.shape[0] * weight[0, 0].numel()
        check_std(weight.detach(), 0.01 if name.startswith("classifier") else (2 / fan_out) ** 0.5)


def test_resnet_starts_from_fan_out_and_keeps_the_default_classifier():
    model = models.build("resnet18", "cifar10")
    for name, weight in prunable(model).items():
        fan_out = weight.shape[0] * weight[0, 0].numel()
        if name == "classifier.weight":
            assert weight.abs().max() <= weight.shape[1] ** -0.5  # uniform within 1/sqrt(fan in)
            assert model.classifier.bias.any()
        else:
            check_std(weight.detach(), (2 / fan_out) ** 0.5)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "mlp"])
def test_reinitialise_draws_the_same_distribution_anew(name):
    model = models.build(name, "digits", width=0.25, seed=0)
    twin = models.build(name, "digits", width=0.25, seed=0)
    models.reinitialise(model, seed=5)
    for (key, new), old in zip(prunable(model).items(), prunable(twin).values(), strict=True):
        assert not torch.equal(new, old), key
        check = 6 / old.numel() ** 0.5
        assert new.std().item() == pytest.approx(old.std().item(), rel=check), key
    again = models.reinitialise(twin, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_reinitialise_makes_trained_identity_scales_one():
    model = models.add_identity_scales(models.build("resnet18", "digits", width=0.1, seed=0))
    for parameter in model.parameters():
        parameter.data.fill_(3)
    drawn = models.reinitialise(model, seed=5).state_dict()
    scales = [name for name in drawn if name.endswith(".scale")]
    assert len(scales) == 5 and all((drawn[name] == 1).all() for name in scales)
    without = models.reinitialise(models.build("resnet18", "digits", width=0.1, seed=0), seed=5).state_dict()
    assert all(torch.equal(drawn[name], tensor) for name, tensor in without.items() if "num_batches" not in name)


def test_reinitialise_refuses_parameters_that_it_cannot_draw():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(3))

    with pytest.raises(InputError, match="cannot re-initialise Scaled"):
        models.reinitialise(Scaled())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("vgg_16", "cifar10"), "unknown model 'vgg_16'; did you mean 'vgg16'"),
        (("vgg11", "cifar"), "unknown data set 'cifar'; did you mean 'cifar10'"),
        (("vgg11", ((3, 28, 28), 10)), "32x32 or 64x64"),
        (("resnet18", ((3, 4, 4), 10)), "at least 8x8"),
        (("mlp", ((3, 4, 4), 0)), "positive sizes"),
        (("mlp", "digits", 0.0), "width must be a positive factor"),
    ],
)
def test_a_network_that_cannot_be_built_gives_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        models.build(*arguments)


def test_identity_scales_change_nothing_until_they_are_trained():
    model = models.build("resnet18", width=0.1).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, names = model(images), set(model.state_dict())
    assert models.add_identity_scales(model) is model
    scales = set(model.state_dict()) - names
    # The first block of stages 2 to 4 has a convolution as its shortcut; the other five blocks have the identity.
    assert scales == {f"blocks.{block}.shortcut.scale" for block in (0, 1, 3, 5, 7)}
    assert torch.equal(model(images), before)
    assert not scales & set(prunable(model))
    chain = models.build("vgg11", width=0.1)
    names = set(chain.state_dict())
    assert set(models.add_identity_scales(chain).state_dict()) == names


@pytest.mark.parametrize(("depth", "weights"), [(20, 270_896), (56, 851_504)])
def test_cifar_resnets_have_the_depth_and_the_size_of_their_paper(depth, weights):
    # He et al. 2016, table 6: 0.27 and 0.85 million parameters; the two shortcut convolutions are ours.
    model = cifar_resnet(depth)
    layers = {name: p.numel() for name, p in model.named_parameters() if p.ndim > 1}
    main = [size for name, size in layers.items() if "shortcut" not in name]
    assert len(main) == depth and sum(layers.values()) == weights


def test_no_seed_reaches_the_random_numbers_of_a_gpu_that_holds_no_weight(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seen.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seen.append)
    model = models.build("mlp", "digits", width=0.1, seed=7)
    models.reinitialise(model, 8)
    models.initialise(model, "he", 9)
    cifar_resnet(8, 10)
    assert seen == []


def test_reinitialise_draws_nothing_where_it_refuses():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model.register_parameter("own", torch.nn.Parameter(torch.zeros(1)))
    before = model[0].weight.clone()
    with pytest.raises(InputError, match="it has no reset_parameters"):
        models.reinitialise(model)
    assert torch.equal(model[0].weight, before)
    model.initialise = lambda: torch.nn.init.ones_(model.own)
    assert models.reinitialise(model).own.item() == 1 and not torch.equal(model[0].weight, before)


def test_reinitialise_draws_attention():
    model = torch.nn.MultiheadAttention(8, 2)
    before = model.in_proj_weight.clone()
    assert not torch.equal(models.reinitialise(model).in_proj_weight, before)
