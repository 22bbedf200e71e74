"""What a GPU has that kernels are cut to; without Triton, so that limits can be told where there is none."""

NUM_SMS = 132  # of an H100 or H200 with SXM


def box_width(head_dim: int) -> int:
    """Columns that a head takes in shared memory: tensor cores multiply 16 or more, Triton powers of two."""
    return max(16, 1 << (head_dim - 1).bit_length())
