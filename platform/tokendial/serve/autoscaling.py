"""The slow loop: replicas follow the visual tokens that requests *wanted*, so that bending hides no overload.

A replica reports `room_tokens`, what its slots hold at the largest count; `wanted_tokens`, what its requests in flight
would have at full count; and `demand_tokens`, its room times the share of its time that the arrivals of the last second
would have taken at full count, those it refused included. Bent requests are soon gone and refused ones never there, so
their overload shows in the demand; where few arrive and stay long, those in flight tell of it. The larger one counts.
Ray Serve calls the policy with every replica's figures and applies bounds and delays to its answer.
This module imports nothing of tokendial: Ray sends it to its controller by value.
"""

import math
from collections.abc import Mapping
from typing import Any

WANTED, DEMAND, ROOM = "wanted_tokens", "demand_tokens", "room_tokens"


def replicas_for(
    wanted: Mapping[Any, float],
    demand: Mapping[Any, float],
    room: Mapping[Any, float],
    running: int,
    target_share: float,
) -> int:
    """Replicas that hold the larger of wanted and demanded tokens at `target_share` of their room.

    `running` where nobody has reported yet.

    A replica that has not reported is taken to hold what the others hold on average: traffic is spread evenly.
    """
    if not wanted or not demand or not room:
        return running
    total = max(sum(tokens.values()) / len(tokens) * max(running, len(tokens)) for tokens in (wanted, demand))
    each = sum(room.values()) / len(room) * target_share
    return max(1, math.ceil(total / each - 1e-9))


class TokenPolicy:
    """What Ray Serve calls, with its `AutoscalingContext`."""

    def __init__(self, target_share: float) -> None:
        self._target_share = target_share

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        reported = context.aggregated_metrics or {}
        running = len(context.running_replicas)
        wanted, demand, room = (reported.get(name, {}) for name in (WANTED, DEMAND, ROOM))
        running = running or context.target_num_replicas
        return replicas_for(wanted, demand, room, running, self._target_share), {}
