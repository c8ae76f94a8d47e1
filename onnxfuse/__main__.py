"""`python -m onnxfuse`, the same as the command `onnxfuse`."""

from __future__ import annotations

import sys

from onnxfuse.cli import main

if __name__ == "__main__":
    sys.exit(main())
