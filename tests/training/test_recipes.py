import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synflow_lib.data import DATASETS
from synflow_lib.errors import InputError
from synflow_lib.models import MODELS, add_identity_scales, build
from synflow_lib.training import RECIPES, Recipe, recipe, shortened, spelled

# Tanaka et al. 2020, appendix: epochs, learning rate, drops, factor, weight decay.
PAPER = {
    ("cifar10", "vgg11"): (160, 0.1, (60, 120), 0.1, 1e-4),
    ("cifar100", "vgg16"): (160, 0.1, (60, 120), 0.1, 1e-4),
    ("cifar10", "resnet18"): (160, 0.01, (60, 120), 0.2, 5e-4),
    ("cifar100", "wide_resnet18_published"): (160, 0.01, (60, 120), 0.2, 5e-4),
    ("tiny-imagenet", "vgg16"): (100, 0.01, (30, 60, 80), 0.2, 1e-4),
    ("tiny-imagenet", "resnet18"): (100, 0.01, (30, 60, 80), 0.2, 1e-4),
}


@pytest.mark.parametrize(("dataset", "model"), list(PAPER))
def test_described_is_the_table_of_the_paper(dataset, model):
    found = recipe("described", dataset, model)
    stated = (found.epochs, found.lr, found.milestones, found.gamma, found.weight_decay)
    assert stated == PAPER[dataset, model]
    assert (found.batch_size, found.momentum, found.nesterov, found.schedule) == (128, 0.9, True, "steps")


@pytest.mark.parametrize(("name", "dataset", "model"), list(product(RECIPES, DATASETS, MODELS)))
def test_every_recipe_exists_for_all_data_and_models_and_can_be_recorded(name, dataset, model):
    found = recipe(name, dataset, model)
    assert found.name == name and found.source
    assert json.loads(json.dumps(found.settings())) == found.settings()
    assert "source" not in found.settings()


def test_fast_is_short():
    assert all(recipe("fast", *pair).epochs <= 20 for pair in product(DATASETS, MODELS))


def test_fast_is_page_where_nothing_better_is_known():
    for dataset, model in product(DATASETS, MODELS):
        (fast, page) = (recipe(name, dataset, model).settings() for name in ("fast", "page"))
        tuned = dataset == "digits" or (dataset.startswith("cifar") and "resnet" not in model)
        assert ({**fast, "name": ""} == {**page, "name": ""}) is not tuned


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_without_learning_may_have_any_number_of_epochs(name):
    for dataset, model in product(DATASETS, MODELS):
        own = recipe(name, dataset, model)
        still = own.without_learning(epochs=1, batch_size=8)
        assert [still.lr_at(epoch) for epoch in (0, 0.5, 1)] == [0, 0, 0]
        assert (still.epochs, still.batch_size, still.crop_at(1)) == (1, 8, own.crop)
        assert (still.updates, still.augment, still.flip) == (own.updates, own.augment, own.flip)


def test_steps_drop_after_each_milestone():
    described = recipe("described", "cifar10", "vgg16")
    assert [described.lr_at(epoch) for epoch in (0, 59.99, 60, 119.99, 120, 159.99)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_one_cycle_rises_to_lr_and_falls_to_zero():
    cycle = Recipe("mine", 10, 64, 0.4, 0.0, "test", schedule="one-cycle", warm_up=2.0)
    assert [cycle.lr_at(epoch) for epoch in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])
    rates = [cycle.lr_at(step / 10) for step in range(101)]
    assert max(rates) == cycle.lr and min(rates) == 0


@pytest.mark.parametrize("warm_up", [0.0, 10.0])
def test_one_cycle_may_only_fall_or_only_rise(warm_up):
    cycle = Recipe("mine", 10, 64, 0.4, 0.0, "test", schedule="one-cycle", warm_up=warm_up)
    assert cycle.lr_at(warm_up) == pytest.approx(0.4) and cycle.lr_at(10 - warm_up) == pytest.approx(0)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(InputError, match=r"unknown recipe 'fats'; did you mean 'fast'\?"):
        recipe("fats", "digits", "vgg11")


WRONG = [
    {"epochs": -1},
    {"batch_size": 0},
    {"lr": -0.1},
    {"momentum": 1.0},
    {"momentum": 0.0},
    {"label_smoothing": -0.1},
    {"label_smoothing": 1.0},
    {"crop": -1},
    {"max_steps": 0},
    {"uncropped": -1},
    {"uncropped": 11},
    {"flip": "never"},
    {"schedule": "cosine"},
    {"schedule": "one-cycle", "warm_up": 11},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_impossible_values_are_refused(wrong):
    values = {"name": "mine", "epochs": 10, "batch_size": 64, "lr": 0.1, "weight_decay": 0.0, "source": "test"}
    with pytest.raises(InputError):
        Recipe(**{**values, **wrong})


@pytest.mark.parametrize("least", [
    {"epochs": 0},
    {"batch_size": 1},
    {"lr": 0.0},
    {"momentum": 0.0, "nesterov": False},
    {"crop": 0},
    {"max_steps": 1},
    {"uncropped": 10},
    {"updates": (("*", 1),)},
    {"schedule": "one-cycle", "warm_up": 10},
])  # fmt: skip
def test_the_last_value_that_makes_sense_is_taken(least):
    values = {"name": "mine", "epochs": 10, "batch_size": 64, "lr": 0.1, "weight_decay": 0.0, "source": "test"}
    made = Recipe(**{**values, **least})
    assert {name: getattr(made, name) for name in least} == least


def test_a_name_may_change_values():
    own = recipe("fast", "cifar10", "vgg11")
    found = recipe("fast:crop=3,epochs=10,lr=1e-3,nesterov=False,momentum=0", "cifar10", "vgg11")
    assert found.name == "fast:epochs=10,lr=0.001,momentum=0,nesterov=False,crop=3"
    changes = {"epochs": 10, "lr": 0.001, "momentum": 0.0, "nesterov": False, "crop": 3}
    told = f"{own.source}, but for epochs=10,lr=0.001,momentum=0,nesterov=False,crop=3"
    assert found == replace(own, name=found.name, source=told, **changes)
    steps = recipe("described:milestones=30+60,max_steps=7", "cifar10", "vgg11")
    assert (steps.milestones, steps.max_steps, steps.gamma) == ((30, 60), 7, 0.1)
    assert recipe("described:milestones=", "cifar10", "vgg11").milestones == ()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(RECIPES)),
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(4, 1000),
            "lr": st.floats(0, 10),
            "weight_decay": st.floats(0, 1),
            "augment": st.booleans(),
            "milestones": st.lists(st.integers(1, 300), max_size=3).map(tuple),
            "label_smoothing": st.floats(0, 0.9),
            "uncropped": st.integers(0, 2),
            "flip": st.sampled_from(["random", "alternating"]),
        },
    ),
)
def test_the_name_of_a_changed_recipe_names_it_again(base, values):
    texts = {key: "+".join(map(str, value)) if isinstance(value, tuple) else value for key, value in values.items()}
    name = base + ":" * bool(texts) + ",".join(f"{key}={text}" for key, text in texts.items())
    found = recipe(name, "cifar10", "vgg11")
    assert recipe(found.name, "cifar10", "vgg11") == found
    for key, value in values.items():
        assert getattr(found, key) == value


def test_there_is_one_spelling_and_a_recipe_that_is_not_changed_keeps_its_name():
    assert spelled("fast:epochs=20,crop=02", "cifar10", "vgg11") == "fast"
    assert spelled("fast:crop=2,epochs=6", "digits", "mlp") == "fast:crop=2"
    assert recipe("fast:epochs=20", "cifar10", "vgg11") == recipe("fast", "cifar10", "vgg11")
    assert [spelled(name, "digits", "mlp") for name in ("fats", "fast:epoch=2")] == ["fats", "fast:epoch=2"]


def test_a_short_name_shows_the_first_change():
    names = ("fast", "fast:crop=2", "fast:epochs=20,batch_size=128,crop=2")
    assert [shortened(name) for name in names] == ["fast", "fast:crop=2", "fast:epochs=20,…"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fats:epochs=20", "unknown recipe 'fats'; did you mean 'fast'"),
        ("fast:epoch=20", "unknown value of a recipe 'epoch'; did you mean 'epochs'"),
        ("fast:source=me", "unknown value of a recipe 'source'"),
        ("fast:updates=2", "unknown value of a recipe 'updates'"),
        ("fast:", "write each change once, as in fast:epochs=10,crop=3"),
        ("fast:epochs", "write each change once"),
        ("fast:lr=1,lr=2", "write each change once"),
        ("fast:epochs=2.5", "recipe 'fast:epochs=2.5': epochs must be a whole number, not '2.5'"),
        ("fast:lr=nan", "lr must be a number, not 'nan'"),
        ("fast:augment=yes", "augment must be True or False, not 'yes'"),
        ("fast:milestones=3,4", "write each change once"),
        ("fast:milestones=3-4", "milestones must be epochs such as 60+120"),
        ("page:epochs=2", "the warm-up of 3.2 epochs must fit into 2"),
        ("fast:schedule=cosine", "unknown learning-rate schedule 'cosine'"),
    ],
)
def test_a_change_that_is_none_is_one_sentence(name, sentence):
    with pytest.raises(InputError) as raised:
        recipe(name, "cifar10", "vgg11")
    assert sentence in str(raised.value)


# ERRATA 2: how often one step of the authors' code updated a tensor.
UPDATES = {
    ("cifar100", "vgg16"): {"features.0.weight": 4, "features.1.bias": 4, "classifier.0.weight": 2},
    ("cifar10", "resnet18"): {
        **{"conv1.weight": 3, "bn1.weight": 3, "blocks.0.conv1.weight": 5, "blocks.2.shortcut.0.weight": 5},
        **{"blocks.0.shortcut.scale": 3, "classifier.bias": 2},
    },
    ("tiny-imagenet", "vgg11"): {"features.0.weight": 3, "classifier.6.weight": 3},
}


@pytest.mark.parametrize(("dataset", "model"), list(UPDATES))
def test_published_is_described_with_repeated_updates(dataset, model):
    found, plain = recipe("published", dataset, model), recipe("described", dataset, model)
    network = add_identity_scales(build(model, dataset, width=0.1)) if found.identity_scales else build(model, dataset)
    names = [name for name, _ in network.named_parameters()]
    for name, number in UPDATES[dataset, model].items():
        assert name in names and found.updates_of(name) == number
    assert found.identity_scales == ("resnet" in model) and plain.updates_of("classifier.0.weight") == 1
    extra = {"name", "updates", "identity_scales"}
    ours, theirs = ({k: v for k, v in r.settings().items() if k not in extra} for r in (found, plain))
    assert ours == theirs


def test_the_optimiser_that_the_authors_saved_had_132_entries_of_34_tensors():
    published = recipe("published", "cifar10", "vgg11")
    updates = [published.updates_of(name) for name, _ in build("vgg11", "cifar10", width=0.1).named_parameters()]
    assert len(updates) == 34 and sum(updates) == 132


def test_settings_that_came_later_are_left_out_where_they_are_not_used():
    """Records made before must still be found."""
    assert not {"updates", "identity_scales", "crop", "flip"} & set(
        recipe("described", "cifar10", "resnet18").settings()
    )
    settings = recipe("published", "cifar10", "resnet18").settings()
    assert settings["updates"][0] == ["*.scale", 3] and settings["identity_scales"] is True
