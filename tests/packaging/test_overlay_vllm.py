"""Another vLLM on the installed one's compiled parts, with a pip that only pretends to download."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

SCRIPT = Path(__file__).parents[2] / "packaging" / "overlay-vllm.sh"
METADATA = "Name: vllm\nVersion: 0.99.0\nRequires-Dist: cuda\n\nAbout vLLM\n"
WHEEL = {
    "vllm/__init__.py": "",
    "vllm/deep/table.json": "{}",
    "vllm/kernel.cu": "",
    "vllm/_C.abi3.so": "for a GPU",
    "vllm-0.99.0.dist-info/METADATA": METADATA,
}
# pip's last argument is the requirement, the one before it the folder.
PYTHON = f"""\
#!/usr/bin/env bash
if [[ $2 == pip ]]; then cp "$WHEEL" "${{@: -2:1}}"; else exec "{sys.executable}" "$@"; fi
"""


def test_python_files_are_new_and_compiled_parts_the_installed_ones(tmp_path: Path) -> None:
    tree, overlay, installed = (tmp_path / name for name in ("tree", "overlay", "installed"))
    for folder in (tree / "packaging", tree / ".venv/bin", installed / "vllm"):
        folder.mkdir(parents=True)
    shutil.copy(SCRIPT, tree / "packaging")
    python = tree / ".venv/bin/python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    for name in ("__init__.py", "_C.abi3.so"):
        (installed / "vllm" / name).write_text("installed")
    wheel = tmp_path / "vllm-0.99.0-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for name, text in WHEEL.items():
            archive.writestr(name, text)
    env = os.environ | {"WHEEL": str(wheel), "PYTHONPATH": str(installed)}
    subprocess.run([tree / "packaging" / SCRIPT.name, "0.99.0", overlay], env=env, check=True)
    assert (overlay / "vllm/__init__.py").read_text() == ""
    assert (overlay / "vllm/deep/table.json").is_file()
    assert not (overlay / "vllm/kernel.cu").exists()
    assert (overlay / "vllm/_C.abi3.so").resolve() == installed / "vllm/_C.abi3.so"
    info = (overlay / "vllm-0.99.0.dist-info/METADATA").read_text()
    assert info == "Name: vllm\nVersion: 0.99.0+cpu\n\nAbout vLLM\n"
