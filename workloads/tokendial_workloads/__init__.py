"""Workloads: data, tasks and experiments that the platform finds by name."""
