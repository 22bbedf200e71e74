"""Settings of all tests."""

import gc
import importlib.util
import os

from hypothesis import HealthCheck, settings

if importlib.util.find_spec("octavo") is not None:  # others' clients are tested from an environment without it
    from octavo.services.launch import new_environment

    # As services run, and before torch is loaded: on a busy machine threads that spin keep those from running that they
    # wait for, which makes a model of a few layers take a minute.
    os.environ.update(new_environment())

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("octavo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("octavo")


def pytest_collection_finish() -> None:
    """What is imported by now stays: no search for garbage need look through it, which takes half a second."""
    gc.freeze()
