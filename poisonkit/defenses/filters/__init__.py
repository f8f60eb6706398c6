"""Defenses that leave rows out: features and labels of a training set in, a detection out."""

from poisonkit.defenses.families import Filter
from poisonkit.defenses.filters.activation_clustering import ActivationClustering
from poisonkit.defenses.filters.deep_knn import DeepKNN
from poisonkit.defenses.filters.spectral_signatures import SpectralSignatures

#: Every defense of this family, by the name that ``poisonkit run --defense`` takes
FILTERS: dict[str, type[Filter]] = {
    "activation_clustering": ActivationClustering,
    "deep_knn": DeepKNN,
    "spectral_signatures": SpectralSignatures,
}

__all__ = ["FILTERS", "ActivationClustering", "DeepKNN", "SpectralSignatures"]
