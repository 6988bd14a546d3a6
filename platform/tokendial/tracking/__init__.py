"""Tracking with MLflow: the only package that imports it. `uri` and `journal` work without it installed."""

from tokendial.tracking.uri import artifact_root, default_uri, redact

__all__ = ["artifact_root", "default_uri", "redact"]
