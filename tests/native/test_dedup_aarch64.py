"""The same sketches and clusters on an ARM processor, which has the scalar path only (run by qemu).

Needs Debian's g++-aarch64-linux-gnu and qemu-user; skipped without them.
"""

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.dialogue_corpus import make_corpus
from osim_core import _dedup
from osim_core.corpus.dedup import Sketches, find_duplicates, text_buffers

ROOT = Path(__file__).parent.parent.parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
DEDUP = ROOT / "csrc/native/dedup"


@pytest.mark.slow
def test_arm_gives_the_columns_and_clusters_of_x86(tmp_path):
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}: apt install g++-aarch64-linux-gnu qemu-user")
    program = tmp_path / "dedup_columns"
    modules = [*DEDUP.glob("*.cpp"), ROOT / "csrc/native/decontaminate/matcher.cpp"]  # more than the program needs
    sources = [path for path in modules if "nanobind" not in path.read_text()]
    sources.append(Path(__file__).parent / "dedup_columns.cpp")
    flags = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
    includes = [f"-I{ROOT / 'csrc/common'}", f"-I{DEDUP}"]
    subprocess.run([COMPILER, *flags, *includes, *sources, "-o", program], check=True)

    texts = make_corpus(2_000)
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.integers(0, 9_000, 5_000)]
    texts += [" ".join(words[:n]) for n in (4, 5, 830, 1_000, 1_040, 1_300, 5_000)]  # on both sides of the wide lanes
    texts += ["ÉCOLE Ж漢字 ทดสอบ 한국어 😂 ÀÖ", "école ж漢字 ทดสอบ 한국어 àö", "", "?!", " " * 70 + "é" * 70]
    data = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    done = subprocess.run([EMULATOR, program], input=data, capture_output=True, check=True)

    data, offsets = text_buffers(texts)
    sketches = Sketches(*_dedup.sketch(data, offsets, 0.8, 1, signatures=False, scalar=False))
    clusters = find_duplicates(texts)
    columns = (sketches.hashes, sketches.widths, sketches.keys, sketches.digits, clusters.survivor, clusters.jaccard)
    at = 0
    for column in columns:
        there = np.frombuffer(done.stdout[at : at + column.nbytes], column.dtype).reshape(column.shape)
        assert np.array_equal(there, column)
        at += column.nbytes
    assert at == len(done.stdout) and (~clusters.keep).sum() > 300 and sketches.wide_rows.size == 5
