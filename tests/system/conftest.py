"""Servers that several modules ask. Each starts when the first test wants it, and ends after the last test of all.

Their processes are to live, and their metrics have counted before: who kills, or counts from 0, starts a server.
"""

from collections.abc import Iterator

import pytest
from tests.tools.server import Server, running


@pytest.fixture(scope="session")
def sim_server() -> Iterator[Server]:
    """Simulated: its tokens are those of the oracle."""
    with running("--device", "sim", "--log-level", "info") as server:
        yield server


@pytest.fixture(scope="session")
def model_server() -> Iterator[Server]:
    """The default model, in float32: its greedy answers do not depend on what else it works on."""
    with running("--dtype", "float32") as server:
        yield server
