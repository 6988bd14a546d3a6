"""How work ends other than well, though the input was good."""


class WorkFailed(RuntimeError):
    """Why the work failed, in one sentence; the command exits 1."""


class ClusterAway(WorkFailed):
    """The cluster, not what was asked of it: the same may succeed when it is back."""


class Terminated(BaseException):
    """SIGTERM: the run ends as KILLED and can be continued."""
