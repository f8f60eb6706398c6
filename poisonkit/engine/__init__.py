"""Where work runs: run directories, manifests, resuming, and the engines that train networks."""

from poisonkit.engine.environment import environment
from poisonkit.engine.finished import load_ensemble
from poisonkit.engine.journals import journal, seconds_of
from poisonkit.engine.local import Local
from poisonkit.engine.progress import Progress
from poisonkit.engine.ray import Ray
from poisonkit.engine.run import Run
from poisonkit.engine.units import Engine, Unit

#: Every engine, by the name that ``--engine`` takes
ENGINES: dict[str, type[Local] | type[Ray]] = {"local": Local, "ray": Ray}

__all__ = [
    "ENGINES",
    "Engine",
    "Local",
    "Progress",
    "Ray",
    "Run",
    "Unit",
    "environment",
    "journal",
    "load_ensemble",
    "seconds_of",
]
