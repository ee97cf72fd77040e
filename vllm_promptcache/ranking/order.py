"""The ranking itself: pure functions of what is known of the replicas.

A replica is *free* unless it has more than twice the requests of the least loaded one and `margin`
besides. First come free holders of the request's modules, then free replicas that hold none, then
the others by load.

Why twice: a spill costs an encode. Where all have much to do it makes all wait longer, so that more
requests spill. With the margin alone, simulated fleets did not recover from a burst.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def are_free(loads: NDArray[np.float64], margin: float) -> NDArray[np.bool_]:
    """Which replicas are free.

    Args:
        loads: Requests at each replica, `[num_replicas]`, at least one.
        margin: Requests.
    """
    return loads <= 2 * loads.min() + margin


def by_tokens(
    indexes: NDArray[np.intp], held: NDArray[np.float32], loads: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Holders that hold most tokens first, less load among equals.

    Args:
        indexes: The holders.
        held: Tokens of the request's modules at each replica, `[num_replicas]`.
        loads: Requests at each replica.
    """
    return indexes[np.lexsort((loads[indexes], -held[indexes]))]


def by_weight(
    indexes: NDArray[np.intp], weights: NDArray[np.uint64], resident: NDArray[np.int64]
) -> NDArray[np.intp]:
    """Replicas of a cold schema by weight, but of the first two the emptier one comes first.

    A schema that spills goes to the same next replica whoever ranks.

    Args:
        indexes: The replicas.
        weights: Of each replica, see `rendezvous.weights`, `[num_replicas]`.
        resident: Tokens of all modules at each replica.
    """
    ranked = indexes[np.argsort(~weights[indexes])]
    if len(ranked) > 1 and resident[ranked[1]] < resident[ranked[0]]:
        ranked[:2] = ranked[1], ranked[0]
    return ranked
