"""Where work runs: run directories, manifests, resuming, and the engine that trains base models."""

from poisonkit.engine.environment import environment
from poisonkit.engine.local import load_ensemble, train_ensemble, train_model
from poisonkit.engine.progress import Progress
from poisonkit.engine.run import Run

__all__ = ["Progress", "Run", "environment", "load_ensemble", "train_ensemble", "train_model"]
