"""Bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: Over all rows.
        low: Lower end; None where there is but one row.
        high: Upper end; as `low`.
    """

    value: float
    low: float | None
    high: float | None


def estimate(values: Sequence[float], statistic: Callable[..., Any] = np.mean) -> Estimate:
    """Estimates a statistic of rows by the percentile bootstrap.

    Rows are drawn the same way each time, so figures of the same rows are paired. Rows that share
    documents count as independent, and where all rows are alike the interval is empty: both make
    it too narrow for few rows.

    Args:
        values: One number a row, `[num_rows]`.
        statistic: Takes an array and an `axis`, as `numpy.mean` does.
    """
    array = np.asarray(values, dtype=float)
    value = float(statistic(array, axis=0))
    if len(array) < 2:
        return Estimate(value, None, None)
    draws = np.random.default_rng(0).integers(len(array), size=(NUM_RESAMPLES, len(array)))
    tails = (50 * (1 - LEVEL), 50 * (1 + LEVEL))
    low, high = np.percentile(statistic(array[draws], axis=1), tails)
    return Estimate(value, float(low), float(high))
