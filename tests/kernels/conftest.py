"""What the tests of kernels run on."""

import pytest


@pytest.fixture(autouse=True)
def threads(two_threads: None) -> None:
    """Loops share out their work among them."""
