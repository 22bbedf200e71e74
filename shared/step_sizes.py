"""Sizes of steps that an engine is prepared for: their spacing widens with the size.

A spacing is pairs of (up to so much, in so wide steps); what is beyond goes on as the last one does.
"""

Spacing = tuple[tuple[int, int], ...]

MIXED_ROWS: Spacing = ((1024, 128), (2048, 256), (8192, 512))
"""Of steps with chunks of prompts, in rows: a GPU has a graph for each, and the scheduler cuts prompts to them."""


def step_at(size: int, spacing: Spacing) -> int:
    """How wide the step is that a size lies in."""
    return next((step for most, step in spacing if size <= most), spacing[-1][1])


def round_up(size: int, spacing: Spacing) -> int:
    """The smallest of the sizes that has room for this one."""
    step = step_at(size, spacing)
    return -(-size // step) * step


def round_down(size: int, spacing: Spacing) -> int:
    """The largest of the sizes that this one has room for; 0 if there is none."""
    step = step_at(size, spacing)
    return size // step * step
