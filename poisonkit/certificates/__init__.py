"""Integer certificate arithmetic: votes in, radii out. Knows no model and no data.

A *hit* on a partition lets the attacker choose the votes of the models trained on it freely; :func:`hits` says how
many an attacker's actions come to. A radius r says that no r hits change the prediction, for any class order that was
fixed before the data was seen.

All arithmetic is in integers: in floats, equation (1) of Wang and Feizi (arXiv 2306.16415) is one too low for votes
as plain as [7, 3].
"""

from poisonkit.certificates.bagging import bagging
from poisonkit.certificates.classes import Order, class_order
from poisonkit.certificates.collective import collective
from poisonkit.certificates.dpa import dpa
from poisonkit.certificates.finite_aggregation import finite_aggregation
from poisonkit.certificates.hash_bagging import hash_bagging
from poisonkit.certificates.run_off import run_off, run_off_above, run_off_finalists, run_off_votes
from poisonkit.certificates.temporal import temporal
from poisonkit.certificates.threat import hits
from poisonkit.certificates.top_n import guess_set, top_n

__all__ = [
    "Order",
    "bagging",
    "class_order",
    "collective",
    "dpa",
    "finite_aggregation",
    "guess_set",
    "hash_bagging",
    "hits",
    "run_off",
    "run_off_above",
    "run_off_finalists",
    "run_off_votes",
    "temporal",
    "top_n",
]
