"""Searching for the token schedule at equal compute."""
