"""Training as data and a loop: recipes, masked gradients, `train`, and what a network costs."""

from synflow_lib.training.checkpoint import Checkpoint, Stopped
from synflow_lib.training.cost import costs, flops
from synflow_lib.training.optim import RepeatedSGD, mask_gradients, sgd
from synflow_lib.training.recipes import RECIPES, Recipe, recipe, shortened, spelled
from synflow_lib.training.train import History, evaluate, train

__all__ = [
    "RECIPES",
    "Checkpoint",
    "History",
    "Recipe",
    "RepeatedSGD",
    "Stopped",
    "costs",
    "evaluate",
    "flops",
    "mask_gradients",
    "recipe",
    "sgd",
    "shortened",
    "spelled",
    "train",
]
