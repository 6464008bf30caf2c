"""Turn a Hugging Face folder into a checkpoint that any layout loads (`model.from_hf` reads the folder directly, too).

python -m osim_core.checkpoint.import HF_DIR OUT_DIR
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from osim_core.config import LayoutConfig
from osim_core.parallel import launch, layout


@dataclass(frozen=True)
class Import:
    folder: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    precision: Literal["fp32", "bf16"] = "bf16"


def main() -> None:
    command = tyro.cli(Import, description=__doc__)
    layout.initialize(LayoutConfig(), seed=0)
    from osim_core.checkpoint.hf import SafetensorsWeights, load_weights
    from osim_core.checkpoint.store import save_model
    from osim_core.model.build import build_model
    from osim_core.model.hf_config import model_config_from_hf

    model = model_config_from_hf(command.folder)
    chunks = build_model(model, LayoutConfig(), command.precision)
    load_weights(chunks, SafetensorsWeights(command.folder, model), model)
    save_model(chunks, model, command.precision, command.out)
    layout.shutdown()


if __name__ == "__main__":
    launch.run(main)
