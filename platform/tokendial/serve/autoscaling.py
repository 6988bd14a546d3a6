"""The slow loop: replicas follow the visual tokens that requests in flight *wanted*, so that bending hides no overload.

A replica reports `wanted_tokens`, what its requests would have at full count, and `room_tokens`, what its slots hold at
the largest count. Ray Serve calls the policy with every replica's figures and applies bounds and delays to its answer.
This module imports nothing of tokendial: Ray sends it to its controller by value.
"""

import math
from collections.abc import Mapping
from typing import Any

WANTED, ROOM = "wanted_tokens", "room_tokens"


def replicas_for(wanted: Mapping[Any, float], room: Mapping[Any, float], running: int, target_share: float) -> int:
    """Replicas that hold the wanted tokens at `target_share` of their room; `running` where nobody has reported yet.

    A replica that has not reported is taken to hold what the others hold on average: traffic is spread evenly.
    """
    if not wanted or not room:
        return running
    total = sum(wanted.values()) / len(wanted) * max(running, len(wanted))
    each = sum(room.values()) / len(room) * target_share
    return max(1, math.ceil(total / each - 1e-9))


class TokenPolicy:
    """What Ray Serve calls, with its `AutoscalingContext`."""

    def __init__(self, target_share: float) -> None:
        self._target_share = target_share

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        reported = context.aggregated_metrics or {}
        running = len(context.running_replicas)
        wanted, room = reported.get(WANTED, {}), reported.get(ROOM, {})
        return replicas_for(wanted, room, running or context.target_num_replicas, self._target_share), {}
