"""`python -m subnet_search` is `subnet-search`."""

from __future__ import annotations

from subnet_search.cli import main

if __name__ == "__main__":
    main()
