#!/bin/sh
# sanitize.sh PYTHON [FOLDER]: the GPU tests of the kernels, each shape in one dtype, under compute-sanitizer: memcheck
# finds wild and misaligned addresses, racecheck races in shared memory. Fails if there are any, or if a test fails.
# Reports go to FOLDER/sanitizer-TOOL.txt (build/ if not given); one that is to be kept belongs into the folder of its
# day and machine in benchmarks/results/. SANITIZER names the program: it comes with the CUDA toolkit, and in the
# package nvidia-cuda-sanitizer-api, which should not be newer than the driver. TESTS and ONLY choose the tests.
set -eu
python=$1
folder=${2:-build}
sanitizer=${SANITIZER:-compute-sanitizer}
tests=${TESTS:-tests/gpu/test_gpu_kernels.py}
only=${ONLY:-not dtype1 and not dtype2 and not many}

command -v "$sanitizer" >/dev/null || {
    echo "sanitize.sh: there is no $sanitizer: set SANITIZER, or install the CUDA toolkit" >&2
    exit 1
}
mkdir -p "$folder"
# Every tensor is an allocation of its own with a gap behind it; torch would put them side by side into one.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
# shellcheck disable=SC2086  # TESTS may name several files
for tool in memcheck racecheck; do
    report=$folder/sanitizer-$tool.txt
    # The names of torch's own kernels are mangled C++.
    "$sanitizer" --tool "$tool" --error-exitcode 1 --target-processes application-only --padding 512 \
        --kernel-name-exclude kernel_substring=_Z --log-file "$report" \
        "$python" -m pytest -m gpu -x -q $tests -k "$only" || {
        tail -n 30 "$report" >&2
        exit 1
    }
    tail -n 1 "$report"
done
