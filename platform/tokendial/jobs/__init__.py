"""Runs on a Ray cluster, from a machine without torch or ray: send, follow, look at, stop. Ray's Jobs API over HTTP."""

from tokendial.jobs.cluster import Cluster
from tokendial.jobs.follow import follow
from tokendial.jobs.logs import read_logs
from tokendial.jobs.order import Order, evaluation_order, search_order, serving_order, training_order
from tokendial.jobs.send import send
from tokendial.jobs.sent import find, last_on, last_sent, sent_to
from tokendial.jobs.status import Standing, standing, standings
from tokendial.jobs.stop import stop, works_here

__all__ = [
    "Cluster",
    "Order",
    "Standing",
    "evaluation_order",
    "find",
    "follow",
    "last_on",
    "last_sent",
    "read_logs",
    "search_order",
    "send",
    "sent_to",
    "serving_order",
    "standing",
    "standings",
    "stop",
    "training_order",
    "works_here",
]
