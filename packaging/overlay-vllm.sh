#!/usr/bin/env bash
# overlay-vllm.sh VERSION DIR [PACKAGE...]: another vLLM on the kernels of the CPU build in .venv.
# For versions that have no CPU build yet. DIR gets the Python files of that version's wheel, links
# to the compiled parts of the one in .venv, and packages that only the new one needs. It works as
# long as the operations that are called are the same; all that it proves is about the Python part.
set -euo pipefail
version=$1 dir=$2
shift 2
cd "$(dirname "$0")/.."

pip() { .venv/bin/python -m pip --no-input --quiet "$@"; }

installed=$(.venv/bin/python -c 'import importlib.util as u; print(u.find_spec("vllm").origin)')
mkdir -p "$dir/wheel"
pip download --no-deps --only-binary :all: --dest "$dir/wheel" "vllm==$version"
.venv/bin/python - "$dir"/wheel/*.whl "$dir" "$(dirname "$installed")" <<'EOF'
import sys
from pathlib import Path
from zipfile import ZipFile

wheel, folder, installed = map(Path, sys.argv[1:])
kept = (".py", ".json", ".jinja", ".typed", "/METADATA", "/entry_points.txt")
with ZipFile(wheel) as archive:
    archive.extractall(folder, [name for name in archive.namelist() if name.endswith(kept)])
for compiled in installed.glob("*.so"):
    (folder / "vllm" / compiled.name).symlink_to(compiled.resolve())
# By "+cpu" vLLM knows its CPU build; what the wheel requires is for another one.
(info,) = folder.glob("vllm-*.dist-info")
lines = (info / "METADATA").read_text().splitlines(keepends=True)
head = (f"{line.rstrip()}+cpu\n" if line.startswith("Version:") else line for line in lines)
(info / "METADATA").write_text("".join(x for x in head if not x.startswith("Requires-Dist:")))
EOF
if (($#)); then pip install --no-deps --target "$dir" "$@"; fi
echo "Run with PYTHONPATH=$dir:\$PWD, for example: .venv/bin/python -m pytest tests/compat"
