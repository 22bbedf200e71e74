#!/bin/sh
# install_torch.sh PYTHON [auto|cpu|cuda]: puts the CPU build of torch into PYTHON's environment.
# With cuda, or auto and an NVIDIA GPU, or where there is no such build, it does nothing: then what
# pyproject.toml asks for is the CUDA build, which is ten times as large.
set -eu
python=$1
build=${2:-auto}

if [ "$build" = auto ] && { [ -e /dev/nvidia0 ] || command -v nvidia-smi >/dev/null; }; then
    build=cuda
fi
if [ "$build" != cuda ]; then
    # Its dependencies come later, with ours: of that index only torch is wanted.
    "$python" -m pip install --no-deps --retries 2 \
        --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu ||
        echo "install_torch.sh: no CPU build of torch is to be had here; the CUDA build works too" >&2
fi
