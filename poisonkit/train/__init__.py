"""Training: a recipe, a key and rows in, a network out; and nothing else plays a part."""

from poisonkit.train.loop import Epoch, Job, OnEpoch, fit, fit_job, new_model, train_epoch
from poisonkit.train.recipe import Recipe
from poisonkit.train.schedules import Cosine, OneCycle, Schedule, Step
from poisonkit.train.stacked import OnEpochs, fit_stack, stack_size

__all__ = [
    "Cosine",
    "Epoch",
    "Job",
    "OnEpoch",
    "OnEpochs",
    "OneCycle",
    "Recipe",
    "Schedule",
    "Step",
    "fit",
    "fit_job",
    "fit_stack",
    "new_model",
    "stack_size",
    "train_epoch",
]
