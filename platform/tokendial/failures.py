"""The one error that means the work itself failed, though the input was good."""


class WorkFailed(RuntimeError):
    """Why the work failed, in one sentence; the command exits 1."""
