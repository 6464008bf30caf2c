"""What a corpus must not hold: the texts of our benchmarks, for osim_core/corpus/decontaminate.py.

An item is one distinct text: a story once however many questions it has, an instruction once however many tasks share
it. Texts under SHORTEST words are left out, because they are boilerplate and nobody's own words: "Where is the melon
really?", "You do not remember your email address." As items they would flag rows by half of themselves, that is, by
five or six words that anybody may write. A text that long is flagged by 13 shared words, or by runs of 8 that cover
half of it. Questions and options are part of no ToMi or Hi-ToM item, since hundreds of stories share them.
"""

from collections.abc import Iterator

from osim_core.corpus.decontaminate import Item
from osim_core.soul import hitom, socialiqa, tomi
from osim_core.soul.packaged import TAU2, read_json

SHORTEST = 13
TAU2_DOMAINS = ("airline", "retail", "telecom", "mock")


def benchmark_items() -> list[Item]:
    """Items of Hi-ToM, ToMi, Social IQa and the user instructions of tau2-bench, with ids that stay.

    Raises ValueError when a wheel is missing.
    """
    items: dict[str, Item] = {}
    for benchmark, id, text in _texts():
        if len(text.split()) >= SHORTEST:
            items.setdefault(text, Item(id, benchmark, (text,)))
    return list(items.values())


def _texts() -> Iterator[tuple[str, str, str]]:
    """(benchmark, id, text) of everything, repeats included; the first id of a text is its own."""
    for question in (*hitom.questions(), *tomi.questions()):
        yield question.task, question.id, question.fields["story"]
    for question in socialiqa.questions():
        fields = question.fields
        # as one text, since situations are as short as eight everyday words; without letters, which vary by layout
        yield question.task, question.id, " ".join((fields["situation"], fields["question"], *fields["options"]))
    for domain in TAU2_DOMAINS:
        for number, task in enumerate(read_json(TAU2, f"tau2/data/tau2/domains/{domain}/tasks.json")):
            for name, text in _instructions(task["user_scenario"]["instructions"]):
                yield "tau2", f"tau2/{domain}/{number}/{name}", text


def _instructions(instructions: str | dict[str, str | None]) -> Iterator[tuple[str, str]]:
    """The texts that the simulated customer of a tau2 task is given; the mock domain has one, the others fields."""
    if isinstance(instructions, str):
        yield "instructions", instructions
    else:
        yield from ((name, text) for name, text in instructions.items() if name != "domain" and text)
