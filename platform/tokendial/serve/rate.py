"""A token bucket: so many requests a second, with a burst of one second's worth. Pure; the caller brings the time."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Bucket:
    """Requests that may be made at once now, and when that was so."""

    level: float
    time_s: float


def take(bucket: Bucket | None, rate_per_s: float, now_s: float) -> tuple[Bucket, float]:
    """The bucket after one request, and seconds to wait: 0 where it may be made, else it is not counted."""
    burst = max(1.0, rate_per_s)
    level = burst if bucket is None else min(burst, bucket.level + rate_per_s * max(0.0, now_s - bucket.time_s))
    if level >= 1.0:
        return Bucket(level - 1.0, now_s), 0.0
    return Bucket(level, now_s), max((1.0 - level) / rate_per_s, math.ulp(1.0))
