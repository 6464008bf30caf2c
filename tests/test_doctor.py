"""The doctor reports what is there, says how to get what is not, and exits 0 whatever it finds."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from osim_core import doctor


def test_every_line_has_a_verdict_and_the_exit_status_is_zero(tmp_path):
    environment = {**os.environ, "PATH": str(tmp_path), "OMP_NUM_THREADS": "1"}  # no nvcc, no anything
    command = [sys.executable, "-m", "osim_core.doctor"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert all(line.split()[0] in ("ok", "missing") for line in lines), done.stdout
    verdicts = {line.split()[1]: line.split()[0] for line in lines}
    assert verdicts["python"] == verdicts["torch"] == verdicts["megatron-core"] == "ok"
    assert [verdicts[f"osim_core.{name}"] for name in ("_native", "_dedup", "_decontaminate")] == ["ok"] * 3
    assert verdicts["nvcc"] == "missing"
    assert sum(line.split()[1] == "kernel" for line in lines) >= 1


def test_a_missing_package_says_how_to_get_it():
    assert doctor.package("no-such-package-here", "make setup") == (
        False,
        "no-such-package-here",
        "make setup",
    )


def test_another_megatron_than_the_pinned_one_is_reported(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.18.0" if name == "megatron-core" else real(name))
    check = doctor.megatron()
    assert not check.works
    assert check.detail == f"0.18.0, but {real('megatron-core')} is pinned: make setup"


def test_a_module_that_does_not_load_is_a_line_and_not_a_crash(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: foo")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    for check in (*doctor.native_modules(), doctor.cuda_module()):
        assert not check.works and check.detail


def test_a_full_disk_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(
        doctor.shutil, "disk_usage", lambda _: doctor.shutil._ntuple_diskusage(10**12, 10**12, 3 * 10**9)
    )
    assert doctor.disk(tmp_path) == (False, "disk", "3 GB free; 20 GB advised")


@pytest.mark.parametrize("asset", doctor.ASSETS)
def test_every_asset_is_pinned_with_a_hash(asset):
    lines = (doctor.Path(__file__).parent.parent / "requirements-assets.txt").read_text().splitlines()
    pins = [line for line in lines if line.startswith(f"{asset}==")]
    assert len(pins) == 1 and "--hash=sha256:" in pins[0]
