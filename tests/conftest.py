"""How hypothesis draws its examples, and what programs under test inherit.

The same examples at each run by default: a check passes or fails for good, on every machine.
HYPOTHESIS_PROFILE=explore draws others, and more of them.
"""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# How fast the machine is, is no result: packages are built, and their tests run, on busy ones.
settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# A shell that runs the tests in the background lets them ignore SIGINT, and so would what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
