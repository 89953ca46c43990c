"""How hypothesis draws its examples.

The same ones at each run by default: a check passes or fails for good, on every machine.
HYPOTHESIS_PROFILE=explore draws others, and more of them.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# How fast the machine is, is no result: packages are built, and their tests run, on busy ones.
settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
