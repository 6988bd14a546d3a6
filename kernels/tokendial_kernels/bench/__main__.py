"""Entry point of `python -m tokendial_kernels.bench`."""

import sys

from tokendial_kernels.bench.run import main

sys.exit(main())
