"""Training: a recipe, a key and rows in, a network out; and nothing else plays a part."""

from poisonkit.train.loop import Epoch, OnEpoch, fit, fit_job, train_epoch
from poisonkit.train.recipe import Recipe
from poisonkit.train.schedules import Cosine, OneCycle, Schedule, Step

__all__ = ["Cosine", "Epoch", "OnEpoch", "OneCycle", "Recipe", "Schedule", "Step", "fit", "fit_job", "train_epoch"]
