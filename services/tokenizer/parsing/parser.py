"""placeholder"""

from typing import Any


class OutputParser:
    def feed(self, text: str) -> list[Any]: ...
    def finish(self) -> list[Any]: ...
