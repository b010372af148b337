"""One definition of a percentile: the nearest rank."""

from __future__ import annotations

import math


def percentile(values, share: float) -> float:
    """Return the smallest value that at least this share (0 to 1) of the values does not exceed; 0 of no values.

    Source: nearest-rank method, NIST/SEMATECH e-Handbook of Statistical Methods, 7.2.6.2.
    """
    ordered = sorted(values)
    if not ordered:
        return 0.0
    # Rounded first: 0.07 * 100 is 7.000000000000001.
    return ordered[min(len(ordered), max(1, math.ceil(round(share * len(ordered), 9)))) - 1]
