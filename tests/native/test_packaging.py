"""The folder kernels/ is the package osim_kernels, from any folder, and the checkout's own files are what runs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def located(module: str, cwd: Path) -> Path:
    code = f"import importlib.util; print(importlib.util.find_spec({module!r}).origin)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=True)
    return Path(done.stdout.strip())


@pytest.mark.parametrize(
    ("module", "source"),
    [("osim_core", "osim_core/__init__.py"), ("osim_kernels", "kernels/__init__.py")],
)
def test_an_editable_install_runs_the_checkout_from_any_folder(module, source, tmp_path):
    assert located(module, tmp_path) == ROOT / source


def test_a_file_added_after_the_install_is_found(tmp_path):
    for package, folder in (("osim_core.corpus", "osim_core/corpus"), ("osim_kernels", "kernels")):
        added = ROOT / folder / "_added_by_test_packaging.py"
        try:
            added.write_text("")
            assert located(f"{package}.{added.stem}", tmp_path) == added
        finally:
            added.unlink(missing_ok=True)


def test_nothing_is_importable_as_kernels(tmp_path):
    """The name belongs to a Hugging Face package that transformers probes for."""
    code = "import importlib.util, sys; spec = importlib.util.find_spec('kernels'); print(spec and spec.origin)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert str(ROOT) not in done.stdout
