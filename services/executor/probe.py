"""What `octavo doctor` asks of the executor: which device and dtype it would choose, as one line of JSON."""

import json

import torch

from octavo.services.executor.load import has_bfloat16

if __name__ == "__main__":
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(
        json.dumps(
            {
                "name": ", ".join(gpus) or f"no GPU; CPU with {torch.backends.cpu.get_cpu_capability()}",
                "device": "cpu",
                "dtype": "bfloat16" if has_bfloat16() else "float32",
            }
        )
    )
