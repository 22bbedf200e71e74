"""Settings of all tests."""

import gc

from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("octavo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("octavo")


def pytest_collection_finish() -> None:
    """What is imported by now stays: no search for garbage need look through it, which takes half a second."""
    gc.freeze()
