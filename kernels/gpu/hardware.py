"""What a GPU has that kernels are cut to; without Triton, so that limits can be told where there is none."""

import torch

NUM_SMS = 132  # of an H100 or H200 with SXM


def capability() -> tuple[int, int]:
    """The compute capability of this process's GPU; (0, 0) where there is none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


def box_width(head_dim: int) -> int:
    """Columns that a head takes in shared memory: tensor cores multiply 16 or more, Triton powers of two."""
    return max(16, 1 << (head_dim - 1).bit_length())
