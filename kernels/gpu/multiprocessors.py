"""What a GPU has that programs are spread over."""

NUM_SMS = 132  # of an H100 or H200 with SXM
