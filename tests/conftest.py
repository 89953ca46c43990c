"""How hypothesis draws its examples.

The same ones at each run by default: a check passes or fails for good, on every machine.
HYPOTHESIS_PROFILE=explore draws others, and more of them.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, database=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
