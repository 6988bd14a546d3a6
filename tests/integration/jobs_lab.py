"""The local cluster of `tokendial bench jobs`, under the scripts in clusters/local, for tests."""

from functools import partial
from pathlib import Path

from tokendial.bench import cluster
from tokendial.bench.cluster import Place, add_node, environment, free_ports, kill_node, raylet, restart_head

__all__ = [
    "ROOT",
    "TINY",
    "Place",
    "add_node",
    "environment",
    "free_ports",
    "kill_node",
    "local_cluster",
    "raylet",
    "restart_head",
]

ROOT = Path(__file__).parents[2]
local_cluster = partial(cluster.local_cluster, ROOT / "clusters" / "local")
# One short stage on the least data: the first step comes as fast as workers start.
TINY = (
    "budget.steps=4", "checkpoint.every=2", "evaluation.counts=[1,4]", "evaluation.test_examples=8",
    "evaluation.table_examples=0",
)  # fmt: skip
