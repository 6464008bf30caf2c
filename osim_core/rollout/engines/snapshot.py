"""Pushed weights as a Hugging Face folder: what an engine loads, and what a restarted one starts from.

    shapes = tensor_shapes(start_folder)
    write_snapshot(weights, shapes, start_folder, folder)    # read one tensor at a time; at most a shard in memory
    for name, tensor in read_snapshot(folder): ...

Folders live as long as their engine and no longer, so they are not fsynced: checkpoints are what outlives a run.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from osim_core.rollout.engines.refusals import checked

SHARD_BYTES = 256 << 20
INDEX = "model.safetensors.index.json"


def read_config(folder: Path) -> dict:
    """config.json. Raises ValueError if `folder` is not a Hugging Face model folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; give a Hugging Face model folder")
    return json.loads(path.read_text())


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder. Raises ValueError if there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no *.safetensors; give a Hugging Face folder with safetensors weights")
    return files


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a folder, out of the files' headers. A tied head is its embedding, so no tensor
    of its own, even where a file repeats it."""
    tied = read_config(folder).get("tie_word_embeddings", False)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in tensor_files(folder):
        with safe_open(file, framework="pt") as handle:
            names = handle.keys()
            shapes.update({name: tuple(handle.get_slice(name).get_shape()) for name in names})
    if tied:
        shapes.pop("lm_head.weight", None)
    return shapes


def read_snapshot(folder: Path, device: str = "cpu") -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor), one at a time."""
    for file in tensor_files(folder):
        with safe_open(file, framework="pt", device=device) as handle:
            names = handle.keys()
            for name in names:
                yield name, handle.get_tensor(name)


def write_snapshot(
    weights: Iterable[tuple[str, torch.Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    start: Path,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `weights` with the config.json of `start` to the new `folder`. Raises ValueError as `checked` does, and
    then, or when the disk is full, leaves nothing behind."""
    folder.mkdir(parents=True)
    places: dict[str, str] = {}
    pending: dict[str, torch.Tensor] = {}

    def flush() -> None:
        file = f"model-{len(set(places.values())):05d}.safetensors"
        save_file(pending, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(pending, file))
        pending.clear()

    try:
        for name, tensor in checked(weights, shapes):
            if pending and sum(t.nbytes for t in pending.values()) + tensor.nbytes > shard_bytes:
                flush()
            pending[name] = tensor.detach().cpu().contiguous()
        flush()
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        shutil.copyfile(start / "config.json", folder / "config.json")
    except BaseException:
        shutil.rmtree(folder)
        raise
