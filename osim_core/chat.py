"""Talk with a checkpoint in the terminal: you are one person, the model writes the other.

    python -m osim_core.chat runs/midtrain/latest
    python -m osim_core.chat runs/midtrain/latest --system "Two strangers chat online. ..."

/system TEXT changes the scene, /reset forgets the conversation, Ctrl-D ends. The checkpoint is exported once into
`<run>/export/<step>` and served by transformers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from osim_core.checkpoint.export import exported
from osim_core.parallel import launch


@dataclass(frozen=True)
class Chat:
    run: Annotated[Path, tyro.conf.Positional]
    system: str = "Two people who do not know each other chat online."
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 128
    seed: int = 0


def main() -> None:
    command = tyro.cli(Chat, description=__doc__)
    folder = exported(command.run)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

    torch.manual_seed(command.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    console = Console(highlight=False)
    console.print(f"{folder}: {model.num_parameters():,} parameters. /system TEXT, /reset, Ctrl-D", markup=False)
    scene = [{"role": "system", "content": command.system}]
    turns: list[dict[str, str]] = []
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    while True:
        try:
            text = console.input("[bold]you:[/bold] ").strip()
        except EOFError:
            break
        if text.startswith("/system "):
            scene, turns = [{"role": "system", "content": text.removeprefix("/system ")}], []
        elif text == "/reset":
            turns = []
        elif text:
            turns.append({"role": "user", "content": text})
            prompt = tokenizer.apply_chat_template(
                scene + turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            console.print("[bold]model:[/bold] ", end="")
            generated = model.generate(
                **prompt,
                do_sample=command.temperature > 0,
                temperature=command.temperature or None,
                top_p=command.top_p,
                max_new_tokens=command.max_new_tokens,
                eos_token_id=end_of_turn,
                pad_token_id=end_of_turn,
                streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
            )
            reply = tokenizer.decode(generated[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
            turns.append({"role": "assistant", "content": reply})


if __name__ == "__main__":
    launch.run(main)
