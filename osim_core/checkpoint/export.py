"""Write a checkpoint as a Hugging Face folder that transformers and vLLM load.

python -m osim_core.checkpoint.export runs/midtrain/latest OUT_DIR          # the run's newest checkpoint
python -m osim_core.checkpoint.export runs/.../checkpoints/step-00000100 OUT_DIR
torchrun --nproc-per-node 8 -m osim_core.checkpoint.export RUN OUT_DIR --tensor 8      # models larger than a rank
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from osim_core.config import LayoutConfig
from osim_core.corpus.render import Renderer
from osim_core.corpus.tokenizer import load as load_tokenizer
from osim_core.parallel import launch, layout


@dataclass(frozen=True)
class Export:
    run: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    tensor: int = 1
    """Tensor-parallel ranks that share the conversion."""


def find_checkpoint(run: Path) -> Path:
    """`run` itself where it is a checkpoint, else its newest one. Raises ValueError where there is none."""
    if (run / "osim.json").is_file():
        return run
    found = sorted((run / "checkpoints").glob("step-*"))
    if not found:
        raise ValueError(f"{run}: no checkpoint; give a run directory or a folder checkpoints/step-*")
    return found[-1]


def export(checkpoint: Path, out: Path, tensor: int = 1) -> None:
    """Convert one checkpoint and add its run's tokenizer. Collective over `tensor` ranks."""
    plan = LayoutConfig(tensor=tensor)
    layout.initialize(plan, seed=0)
    from osim_core.checkpoint.hf import save_hf
    from osim_core.checkpoint.store import load_model, read_model
    from osim_core.model.build import build_model

    model, precision = read_model(checkpoint)
    chunks = build_model(model, plan, "bf16" if precision == "fp8" else precision)
    load_model(chunks, model, checkpoint)
    save_hf(chunks, model, out)
    tokenizer = checkpoint.resolve().parent.parent / "tokenizer"
    if layout.rank() == 0 and tokenizer.is_dir():
        shutil.copytree(tokenizer, out, dirs_exist_ok=True)
        stop = Renderer(load_tokenizer(tokenizer)).end_of_turn  # without it generate() runs on into the next turn
        (out / "generation_config.json").write_text(json.dumps({"eos_token_id": stop, "pad_token_id": stop}))
    layout.shutdown()


def exported(run: Path) -> Path:
    """The Hugging Face folder of a run's newest checkpoint, converted on first use."""
    checkpoint = find_checkpoint(run).resolve()
    folder = checkpoint.parent.parent / "export" / checkpoint.name
    if not folder.is_dir():
        folder.parent.mkdir(exist_ok=True)
        # in its own process: megatron-core's stand-in for CUDA must not meet transformers' generation
        command = [sys.executable, "-m", "osim_core.checkpoint.export", str(checkpoint), str(folder)]
        if code := subprocess.run(command).returncode:
            raise SystemExit(code)  # it has said why
    return folder


def main() -> None:
    command = tyro.cli(Export, description=__doc__)
    export(find_checkpoint(command.run), command.out, command.tensor)


if __name__ == "__main__":
    launch.run(main)
