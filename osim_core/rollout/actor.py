"""A step's rollouts on a rank that owns an engine: play samples, judge and reward them.

    actor = Actor(prompts, speakers, scorer, config.rollout, seed=1, share=(0, 1), refill=False)
    played = actor.play(step)             # trajectories with rewards
    held_out = actor.evaluate(samples)    # one reply each, always from the same seeds

What is played in a step depends on (seed, step) alone; what comes out, on the weights too.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from osim_core.config import RolloutConfig
from osim_core.reward.scorer import Reward, Scorer
from osim_core.rollout.experience import Experience
from osim_core.rollout.feedback import reattached, refinement
from osim_core.rollout.prompts import Prompts
from osim_core.rollout.runner import Speaker, Start, Trajectory, groups, reply_seed, run
from osim_core.soul.episode import Sample, Task
from osim_core.update.algorithms import is_uniform

EVALUATION_SEED = 0x0DD5  # of held-out replies, whatever the run's seed: runs and steps compare
REFILLS = 2  # how often a step samples again for groups that taught nothing (DAPO's dynamic sampling)


@dataclass(frozen=True)
class Played:
    """Trajectories with their rewards, what the learner gets of them, and the seconds that playing and scoring took."""

    trajectories: list[Trajectory]
    rewards: list[Reward]
    experience: list[Experience]
    seconds: tuple[float, float]

    def __add__(self, other: "Played") -> "Played":
        return Played(
            self.trajectories + other.trajectories,
            self.rewards + other.rewards,
            self.experience + other.experience,
            (self.seconds[0] + other.seconds[0], self.seconds[1] + other.seconds[1]),
        )


@dataclass(frozen=True)
class Actor:
    """share: (rank, ranks) among the actors; each plays every ranks-th slot of a step. refill: replace groups whose
    rewards are all equal by groups of further samples. feedback: give drafts a second round (feedback.py)."""

    prompts: Prompts
    speakers: Mapping[str, Speaker]
    scorer: Scorer
    config: RolloutConfig
    seed: int
    share: tuple[int, int]
    refill: bool
    feedback: bool = False

    def play(self, step: int) -> Played:
        """This actor's part of a step."""
        rank, ranks = self.share
        wanted = len(range(rank, self.config.prompts, ranks))
        stretch = self.config.prompts * (1 + REFILLS * self.refill)
        slots = iter(range(step * stretch + rank, (step + 1) * stretch, ranks))
        seed = reply_seed(self.seed, "step", step)
        played = self._play([self.prompts[slot] for slot in islice(slots, wanted)], self.config.replies, seed)
        while self.refill and (short := wanted - self._informative(played)) > 0:
            more = [self.prompts[slot] for slot in islice(slots, short)]
            if not more:
                break
            played += self._play(more, self.config.replies, seed)
        return played + self._refine(played, seed) if self.feedback else played

    def evaluate(self, samples: Sequence[tuple[Task, Sample]]) -> Played:
        """This actor's part of held-out samples, one reply each."""
        rank, ranks = self.share
        return self._play(samples[rank::ranks], 1, EVALUATION_SEED)

    def _play(self, samples: Sequence[tuple[Task, Sample]], replies: int, seed: int) -> Played:
        return self._run([Start(*sample, replica) for sample in samples for replica in range(replies)], seed)

    def _refine(self, drafts: Played, seed: int) -> Played:
        """The second round of every draft that has one; its experience is that of the refined replies."""
        found = [
            (draft, start)
            for trajectory, reward, draft in zip(drafts.trajectories, drafts.rewards, drafts.experience, strict=True)
            if (start := refinement(trajectory, reward.record.final, reward.verdicts))
        ]
        refined = self._run([start for _, start in found], reply_seed(seed, "feedback"))
        pairs = zip([draft for draft, _ in found], refined.experience, strict=True)
        taught = [e for draft, second in pairs for e in reattached(draft, second, self.config.replies)]
        return replace(refined, experience=taught)

    def _run(self, starts: Sequence[Start], seed: int) -> Played:
        began = time.perf_counter()
        trajectories = run(starts, self.speakers, seed) if starts else []
        played = time.perf_counter()
        rewards = self.scorer(trajectories)
        experience = [
            Experience.of(trajectory, reward.record, reward.held_out)
            for trajectory, reward in zip(trajectories, rewards, strict=True)
        ]
        return Played(trajectories, rewards, experience, (played - began, time.perf_counter() - played))

    @staticmethod
    def _informative(played: Played) -> int:
        final = {id(t): reward.record.final for t, reward in zip(played.trajectories, played.rewards, strict=True)}
        return sum(not is_uniform([final[id(t)] for t in group]) for group in groups(played.trajectories))
