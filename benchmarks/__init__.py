"""One script per performance claim; `python -m benchmarks [NAME ...]` measures and writes reports/results."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy and torch are first imported: all figures are of one thread
