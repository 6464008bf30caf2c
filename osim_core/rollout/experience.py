"""Scored trajectories in, the packed rows of a step's updates out.

    experience = [Experience.of(trajectory, record) for ...]                   # on the ranks that roll out
    experience = exchange(experience)                                          # on every rank
    updates = build_updates(experience, algorithm, rows=..., updates=2, ...)   # this data-parallel rank's rows

Replies of one sample form a group: their rewards are compared, and those that follow the same prompt hold it once. An
episode with several ledgers (a character each) gives a reply per ledger, all with the episode's reward; such a group is
compared by episode, so a talkative episode does not count more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist
from megatron.core import parallel_state

from osim_core.batch import PackedBatch
from osim_core.corpus.pack import balance_rows
from osim_core.missing import Missing, Value
from osim_core.reward.compose import RewardRecord
from osim_core.rollout.groups import Group, pack_groups, padding_row
from osim_core.rollout.runner import Trajectory
from osim_core.update.algorithms import Algorithm, is_uniform, token_weights

NOT_WATCHED = Missing("no held-out judge")


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One ledger of an episode, cut into what was given and what followed.

    prompt, reply   token ids; the reply holds whatever came after the first sampled token, others' words too
    is_policy       per reply token, whether the policy sampled it
    logprobs        per reply token, the sampler's log-prob (0 for others' words)
    """

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    is_policy: tuple[bool, ...]
    logprobs: tuple[float, ...]

    @property
    def num_policy(self) -> int:
        """Tokens that the policy sampled."""
        return sum(self.is_policy)


@dataclass(frozen=True, slots=True)
class Experience:
    """What the learner and the log need of one episode: (task, sample) is its group.

    version   the oldest weights in it
    record    how the reward came to be; None for one that is no composition
    held_out  the score of the judge that only watches
    """

    task: str
    sample: str
    replica: int
    reward: Value
    version: int
    sequences: tuple[TokenSequence, ...]
    record: RewardRecord | None = None
    held_out: Value = NOT_WATCHED

    @classmethod
    def of(cls, trajectory: Trajectory, record: RewardRecord, held_out: Value = NOT_WATCHED) -> "Experience":
        """Of a trajectory and its reward. A trajectory in which the policy wrote nothing has no sequences."""
        sequences = []
        for ledger in trajectory.ledgers.values():
            start = ledger.prompt_length
            if start < len(ledger.tokens):
                sequences.append(
                    TokenSequence(
                        tuple(ledger.tokens[:start]),
                        tuple(ledger.tokens[start:]),
                        tuple(ledger.is_policy[start:]),
                        tuple(ledger.logprobs[start:]),
                    )
                )
        sample = trajectory.sample
        version = min(trajectory.versions, default=-1)
        return cls(
            sample.task,
            sample.id,
            trajectory.replica,
            record.final,
            version,
            tuple(sequences),
            record,
            held_out,
        )


def exchange(mine: Sequence[Experience]) -> list[Experience]:
    """Everybody's experience on every rank, ordered by task, sample and replica. Collective over the job."""
    gathered: list[Sequence[Experience]] = [()] * dist.get_world_size()
    dist.all_gather_object(gathered, list(mine))
    return sorted((e for part in gathered for e in part), key=lambda e: (e.task, e.sample, e.replica))


@dataclass(frozen=True)
class Updates:
    """rows: per optimizer update, this data-parallel rank's micro-batches (as many on every rank).

    groups, uniform: how many groups there were, and how many of them were left out or taught nothing
    missing: episodes without a reward, by reason. tokens: that the policy wrote and that are learned from
    """

    rows: list[list[PackedBatch]]
    groups: int
    uniform: int
    missing: dict[str, int]
    tokens: int


def build_updates(
    experience: Sequence[Experience],
    algorithm: Algorithm,
    *,
    updates: int,
    sequence_length: int,
    longest_reply: int,
    streams: tuple[str, ...],
) -> Updates:
    """Group, compare, weigh and pack; the same on every rank, which then keeps its share of each update's rows.

    The step's groups are dealt to `updates` optimizer updates, whole, in order. Raises ValueError for a reply that does
    not fit a row with its prompt.
    """
    grouped: dict[tuple[str, str], list[Experience]] = {}
    for episode in experience:
        grouped.setdefault((episode.task, episode.sample), []).append(episode)
    missing: dict[str, int] = {}
    for episode in experience:
        if isinstance(episode.reward, Missing):
            missing[episode.reward.reason] = missing.get(episode.reward.reason, 0) + 1
    informative = [episodes for episodes in grouped.values() if not is_uniform([e.reward for e in episodes])]
    kept = informative if algorithm.drop_uniform else list(grouped.values())
    parts = [kept[index::updates] for index in range(updates)] if updates > 1 else [kept]
    rows = [
        _deal(_pack(part, algorithm, sequence_length, longest_reply, streams), sequence_length, streams)
        for part in parts
    ]
    learned = [e for episodes in kept for e in episodes if not isinstance(e.reward, Missing)]
    tokens = sum(sequence.num_policy for episode in learned for sequence in episode.sequences)
    return Updates(rows, len(grouped), len(grouped) - len(informative), missing, tokens)


def _pack(
    groups: Sequence[Sequence[Experience]],
    algorithm: Algorithm,
    sequence_length: int,
    longest_reply: int,
    streams: tuple[str, ...],
) -> list[PackedBatch]:
    """One update's rows; replies without a reward, or without a policy token, are left out."""
    learned: list[tuple[int, TokenSequence, float]] = []  # (group, sequence, advantage)
    for number, episodes in enumerate(groups):
        advantages = algorithm.advantages([episode.reward for episode in episodes])
        for episode, advantage in zip(episodes, advantages, strict=True):
            if not isinstance(episode.reward, Missing):
                learned += [(number, sequence, advantage) for sequence in episode.sequences if sequence.num_policy]
    if not learned:
        return []
    weights, factor = token_weights(
        [sequence.num_policy for _, sequence, _ in learned], algorithm.normaliser, longest_reply
    )
    by_prompt: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for index, (number, sequence, _) in enumerate(learned):
        by_prompt.setdefault((number, sequence.prompt), []).append(index)
    packed = [
        Group(
            prompt=prompt,
            replies=[learned[i][1].reply for i in indices],
            weights=[[weights[i] * own for own in learned[i][1].is_policy] for i in indices],
            id=number,
            advantages=[learned[i][2] * factor for i in indices],
            logprobs=[learned[i][1].logprobs for i in indices],
        )
        for (number, prompt), indices in by_prompt.items()
    ]
    return pack_groups(packed, sequence_length, *streams)


def _deal(rows: list[PackedBatch], sequence_length: int, streams: tuple[str, ...]) -> list[PackedBatch]:
    """This data-parallel rank's rows, balanced by tokens and attention, and as many as every other rank has."""
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    rows = rows + [padding_row(sequence_length, *streams, policy=True)] * (-len(rows) % size)
    if not rows:
        return []
    loads_R2 = []
    for row in rows:
        lengths_S = row.cu_seqlens.diff().long()[row.sources_S >= 0]
        loads_R2.append([int(lengths_S.sum()), int((lengths_S**2).sum())])
    owner_R = balance_rows(np.array(loads_R2), size)
    return [row for row, owner in zip(rows, owner_R, strict=True) if owner == rank]
