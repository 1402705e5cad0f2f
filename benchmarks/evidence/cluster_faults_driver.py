"""A driver that another process kills: `python -m benchmarks.evidence.cluster_faults_driver FOLDER ADDRESS`."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.evidence.cluster_faults import WORKERS, factory, go
from subnet_search.record import create_run, open_run
from subnet_search.searchers import Workers

if __name__ == "__main__":
    folder, address = Path(sys.argv[1]), sys.argv[2]
    with open_run(folder / "run") if (folder / "run").exists() else create_run(folder / "run", "") as run:
        go(factory(folder), run, workers=Workers(WORKERS, address))
