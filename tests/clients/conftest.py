"""One server with the default model, which all clients ask."""

from collections.abc import Iterator

import pytest
from tests.tools.server import Server, running

KEY = "sk-clients"
MODEL = "SmolLM2-135M-Instruct"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running("--dtype", "float32", environment={"OCTAVO_API_KEY": KEY}) as server:
        yield server


@pytest.fixture(scope="session")
def url(server: Server) -> str:
    """What clients call the base URL."""
    return f"{server.url}/v1"


@pytest.fixture(scope="session")
def key() -> str:
    return KEY


@pytest.fixture(scope="session")
def model() -> str:
    return MODEL
