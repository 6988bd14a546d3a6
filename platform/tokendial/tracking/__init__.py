"""Tracking with MLflow: the only package that imports it. `uri` and `journal` work without it installed."""

from tokendial.tracking.journal import linked_id, unsettled
from tokendial.tracking.uri import default_uri, redact, resolve_uri

__all__ = ["default_uri", "linked_id", "redact", "resolve_uri", "unsettled"]
