"""Where tests find what they read."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
GOLDEN = ROOT / "tests" / "golden"
SHARED = Path(os.environ.get("KEDIT_SHARED", ROOT.parent / "shared")) / "data"
"""Real data sets, where they are at hand; never part of the project."""
