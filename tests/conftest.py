"""What holds for all tests."""

from __future__ import annotations

import signal

# Some tests press Ctrl-C. A shell that starts the tests in the background has it ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
