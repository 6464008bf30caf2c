"""Two people, each with a goal the other does not know (the protocol of Sotopia, arXiv 2310.11667; scenarios ours).

They act in turn, at most 15 actions together, the first character first. An action is JSON, {"action_type": "speak",
"argument": "..."}: speak, non-verbal communication, action, or leave, which ends the scene at once. A reply that is
no such action does nothing and is never read out as speech; three in a row end the episode, as "malformed" if the
policy wrote them. A judge then scores seven dimensions of the policy's character (SOTOPIA below).

The policy plays one character and the role "partner" the other; with `self_play` it plays both, each in its own ledger,
and the score is the mean of both.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from osim_core.corpus.conversation import Message
from osim_core.judge.rubric import JudgeItem, Verdict
from osim_core.missing import Missing, Value
from osim_core.soul.answers import strip_thinking
from osim_core.soul.episode import POLICY, Ask, Episode, Outcome, Sample, Split, TaskSpec, Turn
from osim_core.soul.judged import mean
from osim_core.soul.single_turn import part
from osim_core.soul.splits import split_scenarios

RUBRIC = "sotopia"
MAX_ACTIONS, MAX_MALFORMED, MAX_TOKENS = 15, 3, 256
KINDS = ("speak", "non-verbal communication", "action", "leave")
SCENARIOS = Path(__file__).parent / "scenarios" / "dyads.json"

# dimension -> (lowest, highest, weight in the normalised score), as in the rubric
SOTOPIA: Mapping[str, tuple[float, float, float]] = {
    "believability": (0, 10, 0.5),
    "relationship": (-5, 5, 1),
    "knowledge": (0, 10, 1),
    "secret": (-10, 0, 0.5),
    "social_rules": (-10, 0, 0.5),
    "financial": (-5, 5, 0.5),
    "goal": (0, 10, 2),
}


@dataclass(frozen=True, slots=True)
class Action:
    kind: str
    argument: str

    def told(self, name: str) -> str:
        """How the other character perceives it."""
        match self.kind:
            case "speak":
                return f'{name} said: "{self.argument}"'
            case "leave":
                return f"{name} left."
            case _:
                return f"[{self.kind}] {name} {self.argument}"


def parse_action(text: str) -> Action | None:
    """The action that a reply states: its first JSON object, around which anything may stand. None if there is none.

    "none" is no action, and neither is an empty argument, except that of leaving.
    """
    text = strip_thinking(text)
    for brace in re.finditer(r"\{", text):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue
        kind, argument = found.get("action_type"), found.get("argument", "")
        if kind in KINDS and isinstance(argument, str) and (argument.strip() or kind == "leave"):
            return Action(kind, argument.strip())
    return None


def raw_scores(verdict: Verdict) -> dict[str, Value]:
    """The seven dimensions in Sotopia's units."""
    raw: dict[str, Value] = {}
    for name, (low, high, _) in SOTOPIA.items():
        value = verdict.values[name]
        raw[name] = value if isinstance(value, Missing) else low + value * (high - low)
    return raw


def normalised_score(raw: Mapping[str, Value]) -> Value:
    """Sotopia's seven raw dimensions on one scale, [0, 1]: each by its range, then the weighted mean."""
    values = []
    for name, (low, high, _) in SOTOPIA.items():
        value = raw.get(name, Missing("not judged", name))
        values.append(value if isinstance(value, Missing) else (value - low) / (high - low))
    return mean(values, [weight for _, _, weight in SOTOPIA.values()])


def paper_score(raw: Mapping[str, Value]) -> Value:
    """What OdysSim reports: 0.1 x the plain mean of the raw dimensions, in [-0.4286, 0.5714]. Not comparable with the
    normalised score: it mixes signed and unsigned ranges."""
    value = mean([raw.get(name, Missing("not judged", name)) for name in SOTOPIA])
    return value if isinstance(value, Missing) else 0.1 * value


@cache
def scenarios() -> tuple[dict, ...]:
    """Our 24: id, setting, relationship, two characters with name, background and goal."""
    return tuple(json.loads(SCENARIOS.read_text(encoding="utf-8")))


class Dyad:
    def __init__(self, self_play: bool = False) -> None:
        self.self_play = self_play
        sides = 1 if self_play else 2
        self.spec = TaskSpec(
            id="dyad_self_play" if self_play else "dyad",
            axis="SS",
            version=1,
            origin="protocol of Sotopia (arXiv 2310.11667), scenarios ours",
            licence="Apache-2.0",
            chance=None,
            judged=True,
            items={"train": 14 * sides, "validation": 5 * sides, "test": 5 * sides},
            roles=() if self_play else ("partner",),
        )

    def samples(self, split: Split) -> Sequence[Sample]:
        """fields: the scenario's, and plays: which of the characters, 0 or 1, are the policy's."""
        splits = split_scenarios({scenario["id"]: "all" for scenario in scenarios()})
        casts = ((0, 1),) if self.self_play else ((0,), (1,))
        return [
            Sample(
                id=f"{self.spec.id}/{scenario['id']}/{''.join(map(str, plays))}",
                task=self.spec.id,
                scenario=scenario["id"],
                fields={**scenario, "plays": plays},
            )
            for scenario in scenarios()
            if splits[scenario["id"]] == split
            for plays in casts
        ]

    def episode(self, sample: Sample) -> Episode:
        return _Scene(sample).play()

    def score(self, sample: Sample, outcome: Outcome, verdicts: Mapping[str, Verdict]) -> Value:
        """The normalised score, in [0, 1]."""
        acted = part(outcome, "acted")
        return self._mean(normalised_score, outcome, verdicts) if acted == 1.0 else acted

    def paper_score(self, sample: Sample, outcome: Outcome, verdicts: Mapping[str, Verdict]) -> Value:
        """OdysSim's number. Missing for an episode that ended malformed: theirs has no such thing."""
        acted = part(outcome, "acted")
        return self._mean(paper_score, outcome, verdicts) if acted == 1.0 else Missing(outcome.ended)

    def _mean(self, scale: Callable, outcome: Outcome, verdicts: Mapping[str, Verdict]) -> Value:
        """Over the policy's characters."""
        absent = next((item.id for item in outcome.judgements if item.id not in verdicts), None)
        if absent is not None:
            return Missing("not judged", absent)
        return mean([scale(raw_scores(verdicts[item.id])) for item in outcome.judgements])


class _Scene:
    """One play of a scenario."""

    def __init__(self, sample: Sample) -> None:
        self.sample, self.plays = sample, sample.fields["plays"]
        self.cast = sample.fields["characters"]
        self.turns: list[Turn] = []
        self.unseen: list[list[Message]] = [[Message("system", self._brief(side))] for side in (0, 1)]
        self.unseen[0].append(Message("user", "You act first."))
        self.malformed, self.in_a_row = [0, 0], [0, 0]

    def play(self) -> Episode:
        for number in range(MAX_ACTIONS):
            side = number % 2
            (reply,) = yield (self._ask(side),)
            if isinstance(reply.text, Missing):
                return self._end(reply.text.reason)
            action = parse_action(reply.text)
            told = action.told(self._name(side)) if action else f"{self._name(side)} did nothing."
            self.turns.append(Turn(self._name(side), told))
            self.malformed[side] += action is None
            self.in_a_row[side] = 0 if action else self.in_a_row[side] + 1
            if self.in_a_row[side] == MAX_MALFORMED:
                return self._end("malformed" if side in self.plays else "partner malformed")
            if action and action.kind == "leave":
                return self._end("done")
            self.unseen[1 - side].append(Message("user", told))
        return self._end("turns")

    def _ask(self, side: int) -> Ask:
        speaker = POLICY if side in self.plays else "partner"
        ledger = self._name(side) if len(self.plays) == 2 else ""
        messages, self.unseen[side] = tuple(self.unseen[side]), []
        return Ask(speaker=speaker, messages=messages, max_tokens=MAX_TOKENS, ledger=ledger)

    def _end(self, how: str) -> Outcome:
        turns = tuple(self.turns)
        outcome = Outcome(turns=turns, values={}, ended=how)
        if how == "malformed":
            return replace(outcome, values={"acted": 0.0})
        if how not in ("done", "turns"):
            return outcome
        own = sum(turn.speaker == self._name(side) for turn in turns for side in self.plays)
        well_formed = 1 - sum(self.malformed[side] for side in self.plays) / max(own, 1)
        values = {"acted": 1.0, "well_formed": well_formed}
        if not own:  # the partner left before the policy's first action: nothing to judge
            return replace(outcome, ended="partner left at once")
        return replace(outcome, values=values, judgements=tuple(map(self._judgement, self.plays)))

    def _judgement(self, side: int) -> JudgeItem:
        other = 1 - side
        context = "\n".join(
            (
                f"Setting: {self.sample.fields['setting']}",
                f"Relationship: {self.sample.fields['relationship']}",
                *(f"{c['name']}: {c['background']}. Private goal: {c['goal']}" for c in self.cast),
                f"To be judged: {self._name(side)}, who talks with {self._name(other)}.",
            )
        )
        reply = "\n".join(turn.text for turn in self.turns)
        return JudgeItem(id=f"{self.sample.id}/{side}", rubric=RUBRIC, context=context, reply=reply)

    def _name(self, side: int) -> str:
        return self.cast[side]["name"]

    def _brief(self, side: int) -> str:
        own, other = self.cast[side], self.cast[1 - side]
        return (
            f"You are {own['name']}: {own['background']}.\n"
            f"Setting: {self.sample.fields['setting']}\n"
            f"With you: {other['name']}. You are {self.sample.fields['relationship']}. "
            f"What {other['name']} wants you do not know.\n"
            f"Your private goal: {own['goal']}\n\n"
            f"Act as {own['name']} would, one action at a time and never for {other['name']}. Keep private things "
            "private as you see fit. Leave when you have what you wanted, when nothing more can be had, or when you "
            "have had enough. Answer with JSON only:\n"
            '{"action_type": TYPE, "argument": TEXT}\n'
            f"TYPE is one of: {', '.join(KINDS)}. TEXT is what you say or do; it may be empty only when you leave."
        )
