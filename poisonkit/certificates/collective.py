"""The collective certificate: how many of M predictions one attack can change, rather than whether it changes each.

Chen, Li, Li, Wu and Yan, "On Collective Robustness of Bagging Against Data Poisoning", ICML 2022, arXiv 2205.13176,
as an integer program for SciPy's HiGHS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poisonkit import ops
from poisonkit.certificates.classes import Order, class_order, require_votes
from poisonkit.errors import MissingError, require

_SLACK = 1e-3  # far above the solver's tolerances, far below one prediction


def collective(
    votes: Tensor,
    num_classes: int,
    hits: int,
    *,
    shifts: Sequence[int] = (0,),
    groups: int = 1,
    order: Order = None,
    counted: Tensor | None = None,
    chunk: int = 100,
    seconds: float = 60.0,
) -> int:
    """An upper bound on how many predictions ``hits`` partitions hit (in each group) can change together.

    votes    uint8, uint16 or int64 [n, M]
    hits     see :func:`hits`
    shifts   of Finite Aggregation; (0,) for disjoint partitions
    groups   of hash bagging; 1 for one hash function
    order    all K classes, the one that wins ties first; None for 0, 1, ..., K-1
    counted  bool [M], the predictions that matter: with those that are right, (right - bound) / M is the collective
             certified accuracy; None for all
    chunk    inputs solved together. The sum of the chunks' bounds is a bound, looser for smaller chunks
    seconds  for the solver in all; a chunk whose share runs out gives the bound it had proven by then

    Solved to the end in one chunk, the bound is the exact number against an attacker who has the hit models vote at
    will. The program: x_h says that cell h is hit, z_i <= the sum of x_h over the cells that feed model i that it is
    controlled, and Y_jc that input j goes to class c: the sum of (1 + [v_i = y] - [v_i = c]) z_i is at least
    (n_y - n_c - [c before y] + 1) Y_jc. Raises MissingError without SciPy.
    """
    require_votes(votes)
    require(hits >= 0, "hits", "0 or more", hits)
    require(chunk >= 1, "chunk", "at least 1", chunk)
    require(seconds > 0, "seconds", "above 0", seconds)
    ordered = class_order(num_classes, order).to(votes.device)
    prediction, radius = ops.vote_radius(votes[:, :, None], ordered, None, shifts, groups)
    open_ = radius < hits  # the others stand even alone
    if counted is not None:
        require(counted.shape == radius.shape, "counted", f"of shape {list(radius.shape)}", list(counted.shape))
        require(counted.dtype == torch.bool, "counted", "bool", counted.dtype)
        open_ &= counted
    column_of = ordered.argsort()
    columns = column_of[votes[:, open_].to(torch.int64)].T.cpu().numpy()
    mine = column_of[prediction[open_]].cpu().numpy()
    feeds = _feeds(votes.shape[0], shifts, groups)
    starts = range(0, len(mine), chunk)
    share = seconds / max(1, len(starts))
    return sum(
        _bound(columns[start : start + chunk], mine[start : start + chunk], num_classes, feeds, groups, hits, share)
        for start in starts
    )


def _feeds(models: int, shifts: Sequence[int], groups: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each cell feeds each model, [cells, models]."""
    size = models // groups
    one = sum(np.roll(np.eye(size, dtype=np.int64), shift, axis=1) for shift in shifts) > 0
    return np.kron(np.eye(groups, dtype=np.int64), one) > 0


def _bound(
    columns: np.ndarray[Any, Any],
    mine: np.ndarray[Any, Any],
    num_classes: int,
    feeds: np.ndarray[Any, np.dtype[np.bool_]],
    groups: int,
    hits: int,
    seconds: float,
) -> int:
    """The bound of one chunk: votes as columns [rows, n], predictions as columns [rows]."""
    try:
        from scipy import sparse
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise MissingError("scipy must be installed, got no module; pip install 'poisonkit[collective]'") from error
    gains, needed, row = [], [], []
    for i, (vote, y) in enumerate(zip(columns, mine, strict=True)):
        count = np.bincount(vote, minlength=num_classes)
        spare = np.flatnonzero((count == 0) & (np.arange(num_classes) != y))[:1]  # the best rival without votes
        for c in (*(c for c in np.unique(vote) if c != y), *spare):
            gain = 1 + (vote == y).astype(np.int64) - (vote == c)
            need = count[y] - count[c] - int(c < y) + 1
            powers = np.sort((feeds @ gain).reshape(groups, -1))
            if powers[:, -hits:].sum() >= need:  # else out of reach even alone; without it the program is tighter
                gains.append(gain)
                needed.append(need)
                row.append(i)
    cells, models = feeds.shape
    changes = len(row)
    # variables: x [cells], z [models], Y [changes]
    control = sparse.hstack([-feeds.T.astype(float), sparse.eye(models), sparse.csr_matrix((models, changes))])
    pay = sparse.hstack([sparse.csr_matrix((changes, cells)), np.stack(gains), -sparse.diags(np.array(needed, float))])
    once = sparse.csr_matrix((np.ones(changes), (row, np.arange(changes))), (len(mine), changes))
    once = sparse.hstack([sparse.csr_matrix((len(mine), cells + models)), once])
    spend = np.kron(np.eye(groups), np.ones(cells // groups))
    spend = sparse.hstack([spend, sparse.csr_matrix((groups, models + changes))])
    found = milp(
        np.concatenate([np.zeros(cells + models), -np.ones(changes)]),
        # z is 0 or 1 by itself: nothing gains by less of it
        integrality=np.concatenate([np.ones(cells), np.zeros(models), np.ones(changes)]),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(control.tocsr(), -np.inf, 0),
            LinearConstraint(pay.tocsr(), 0, np.inf),
            LinearConstraint(once.tocsr(), -np.inf, 1),
            LinearConstraint(spend.tocsr(), -np.inf, hits),
        ],
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    dual = found.mip_dual_bound
    if dual is None or not math.isfinite(dual):  # stopped before it had one
        return len(mine)
    return min(len(mine), math.floor(_SLACK - float(dual)))
