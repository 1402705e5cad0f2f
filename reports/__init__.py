"""What people read: run folders as plain records, figures and one self-contained page. No torch."""

from reports.overlay import plot_front
from reports.page import write_report
from reports.reading import read_run

__all__ = ["plot_front", "read_run", "write_report"]
