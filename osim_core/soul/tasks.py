"""The tasks by name. SOUL-Index and RL take them from here; an unknown name is an error, never a default.

task = find("tomi")
"""

from collections.abc import Callable, Mapping

from osim_core.soul.dyad import Dyad
from osim_core.soul.episode import Task
from osim_core.soul.hitom import HiToM
from osim_core.soul.next_turn import NextTurn
from osim_core.soul.socialiqa import SocialIQa
from osim_core.soul.style import Style
from osim_core.soul.tomi import ToMi
from osim_core.soul.userllm import UserLLM

TASKS: Mapping[str, Callable[[], Task]] = {
    "dyad": Dyad,
    "dyad_self_play": lambda: Dyad(self_play=True),
    "hitom": HiToM,
    "next_turn": NextTurn,
    "next_turn_short": lambda: NextTurn(short=True),
    "socialiqa": SocialIQa,
    "style": Style,
    "tomi": ToMi,
    "userllm": UserLLM,
}


def find(name: str) -> Task:
    """The task of that name. Raises ValueError for one that is not there."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown; there are {', '.join(TASKS)}")
    return TASKS[name]()
