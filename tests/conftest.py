"""Settings of all tests."""

import gc
import importlib.util
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

if importlib.util.find_spec("octavo") is not None:  # others' clients are tested from an environment without it
    from octavo.services.launch import new_environment

    # As services run, and before torch is loaded: on a busy machine threads that spin keep those from running that they
    # wait for, which makes a model of a few layers take a minute.
    os.environ.update(new_environment())

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # The cores are shared out among the workers: two models of as many threads as there are cores take twice as long,
    # for all of a model's threads wait for the one that has no core.
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("octavo", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("octavo")


def pytest_collection_finish() -> None:
    """What is imported by now stays: no search for garbage need look through it, which takes half a second."""
    gc.freeze()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch has two at least, though a worker of the suite may have been given one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)
