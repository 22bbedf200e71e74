"""A step whose result is there as soon as it is launched."""

from dataclasses import dataclass

from octavo.shared.messages import StepResult


@dataclass(frozen=True)
class Done:
    value: StepResult
    is_done = True

    def result(self) -> StepResult:
        return self.value
