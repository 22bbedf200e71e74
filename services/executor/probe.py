"""What `octavo doctor` asks of the executor: which device and dtype it would choose, as one line of JSON."""

import json

import torch

from octavo.services.executor.load import choose_device, has_bfloat16
from octavo.shared.config import Config

if __name__ == "__main__":
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(
        json.dumps(
            {
                "name": ", ".join(gpus) or f"no GPU; CPU with {torch.backends.cpu.get_cpu_capability()}",
                "device": (device := choose_device(Config())),
                "dtype": "bfloat16" if device == "cuda" or has_bfloat16() else "float32",
            }
        )
    )
