"""One resumable script per file in reports/results."""
