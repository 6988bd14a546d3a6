"""The `tokendial` command. Bad input exits 2, failed work exits 1."""

import os
import sys

from tokendial import environment
from tokendial.commands.shell import app

# isort: off
# Importing a module adds its commands; `--help` lists them in this order.
from tokendial.commands import training, search, results, serve, jobs, machine  # noqa: F401

# isort: on


def main() -> None:
    """Entry of the console script."""
    environment.apply()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Experiments of one's own, `module:function`, are looked for in the working folder too.
    sys.path.append(os.getcwd())
    app()


if __name__ == "__main__":
    main()
