"""Where a run's weights come from, whatever the user names: a run of ours, a Hugging Face folder, a packaged model.

    folder = hugging_face_folder("runs/midtrain/latest", cache=Path("data"))
    model = model_config_from_hf(folder)

Rollout engines load such a folder, so reinforcement learning and distillation start from one too.
"""

import json
from pathlib import Path

from osim_core.checkpoint.export import exported
from osim_core.model.packaged import SMOLLM2, unpack_smollm2


def hugging_face_folder(start: str, cache: Path) -> Path:
    """The folder with config.json, safetensors and tokenizer behind `start`; a run's newest checkpoint, exported once.

    Raises ValueError where there is no model.
    """
    if start == SMOLLM2:
        return unpack_smollm2(cache)
    path = Path(start)
    if (path / "config.json").is_file() and "architectures" in json.loads((path / "config.json").read_text()):
        return path
    if not path.is_dir():
        raise ValueError(f"{start}: no such folder; name a run, a checkpoint, a Hugging Face folder or {SMOLLM2}")
    return exported(path)
