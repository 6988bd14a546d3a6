"""The slow loop: replicas follow the visual tokens that requests *wanted*, so that bending hides no overload.

A replica reports `room_tokens`, what its slots hold at the largest count; `wanted_tokens`, what its requests in flight
would have at full count; and `demand_tokens`, its room times the share of its time that the arrivals of the last second
would have taken at full count, those it refused included. Bent requests are soon gone and refused ones never there, so
their overload shows in the demand; where few arrive and stay long, those in flight tell of it. The larger one counts.

`crowded_tokens` are the demand while arrivals met each other, 0 else. Only these add replicas: one caller's requests,
each sent after the last one's answer, are no sooner answered by two. The demand as a whole takes none away that it
needs: once there are enough of them arrivals no longer meet, which is what they were added for.

Ray Serve calls the policy with every replica's figures, each a mean of some seconds, and applies bounds and delays to
its answer. This module imports nothing of tokendial: Ray sends it to its controller by value.
"""

import math
from collections.abc import Mapping
from typing import Any

WANTED, DEMAND, CROWDED, ROOM = "wanted_tokens", "demand_tokens", "crowded_tokens", "room_tokens"


def report(wanted_tokens: int, demand_share: float, crowded: bool, room: float) -> dict[str, float]:
    """A replica's figures now."""
    demand = demand_share * room
    return {WANTED: float(wanted_tokens), DEMAND: demand, CROWDED: demand if crowded else 0.0, ROOM: room}


def replicas_for(reported: Mapping[str, Mapping[Any, float]], running: int, target_share: float) -> int:
    """Replicas that hold the larger of wanted and crowded tokens at `target_share` of their room; of those `running`,
    all that the demand needs.

    `running` where nobody has reported yet. A replica that has not reported is taken to hold what the others hold on
    average: traffic is spread evenly.
    """
    if not all(reported.get(name) for name in (WANTED, DEMAND, CROWDED, ROOM)):
        return running
    room = reported[ROOM]
    each = sum(room.values()) / len(room) * target_share

    def needed(name: str) -> int:
        tokens = reported[name]
        total = sum(tokens.values()) / len(tokens) * max(running, len(tokens))
        return math.ceil(total / each - 1e-9)

    return max(1, needed(WANTED), needed(CROWDED), min(needed(DEMAND), running))


class TokenPolicy:
    """What Ray Serve calls, with its `AutoscalingContext`."""

    def __init__(self, target_share: float) -> None:
        self._target_share = target_share

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        running = len(context.running_replicas) or context.target_num_replicas
        return replicas_for(context.aggregated_metrics or {}, running, self._target_share), {}
