"""Training: a recipe, a key and rows in, a network out; and nothing else plays a part."""

from poisonkit.train.adversarial import Adversarial
from poisonkit.train.journal import Journal
from poisonkit.train.loop import Epoch, Job, OnEpoch, fit, fit_job, new_model, train_epoch
from poisonkit.train.procedure import Batch, Procedure
from poisonkit.train.recipe import Recipe
from poisonkit.train.schedules import Cosine, OneCycle, Schedule, Step
from poisonkit.train.stacked import OnEpochs, fit_stack, stack_size

__all__ = [
    "Adversarial",
    "Batch",
    "Cosine",
    "Epoch",
    "Job",
    "Journal",
    "OnEpoch",
    "OnEpochs",
    "OneCycle",
    "Procedure",
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
