"""Read a GGUF file (llama.cpp's format): metadata at once, tensors dequantised one at a time.

The gguf package knows the block formats; its reader, however, makes a NumPy view for each string, and a vocabulary
with its merges has a hundred thousand. This one reads the header of a 100 MB file in about half a second.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class GGUFFile:
    """`metadata` (key -> value) and `tensor(name)` of one file. Raises ValueError when it is not GGUF 2 or 3."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        magic, version = self._take("4s"), self._take("I")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path}: not a GGUF file of version 2 or 3")
        tensors, keys = self._take("Q"), self._take("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            self.metadata[key] = self._value(self._take("I"))
        self._tensors: dict[str, tuple[tuple[int, ...], GGMLQuantizationType, int]] = {}
        for _ in range(tensors):
            name = self._string()
            shape = tuple(self._take("Q") for _ in range(self._take("I")))[::-1]  # stored innermost first
            self._tensors[name] = shape, GGMLQuantizationType(self._take("I")), self._take("Q")
        alignment = self.metadata.get("general.alignment", 32)
        self._data = math.ceil(self._at / alignment) * alignment

    def tensor(self, name: str) -> np.ndarray:
        """float32, in the shape that PyTorch gives the weight."""
        shape, kind, offset = self._tensors[name]
        block, block_bytes = GGML_QUANT_SIZES[kind]
        raw = np.frombuffer(
            self._bytes, np.uint8, count=math.prod(shape) // block * block_bytes, offset=self._data + offset
        )
        return dequantize(raw.reshape(*shape[:-1], -1), kind).reshape(shape)

    def _take(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._bytes, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._take("Q")
        self._at += length
        return self._bytes[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            inner, count = self._take("I"), self._take("Q")
            return [self._value(inner) for _ in range(count)]
        return self._take(SCALARS[kind])
