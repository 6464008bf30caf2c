"""Rendering equals the template, loss lies on what is sampled, and unstable templates are refused by name."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from osim_core.corpus import tokenizer as tokenizers
from osim_core.corpus.chat_template import JinjaTemplate
from osim_core.corpus.conversation import Conversation, Message
from osim_core.corpus.render import Renderer
from osim_core.corpus.tokenizer import CHATML_TEMPLATE, TURN_END, TURN_START

BLOCKS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '#' + m.content + '<|im_end|>' }}{% endfor %}"
TRIMMED = (
    "{{ '<|endoftext|>' }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>' }}{% endfor %}"
)
GREETED = (  # a default system message where there is none, as in Qwen2.5
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
    + CHATML_TEMPLATE
)
# Templates that say something else about a message once others follow it
THINKING = (  # an empty think block in the last turn if it is the assistant's, as in Qwen3
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
)
COUNTED = "{{ messages | length }}" + CHATML_TEMPLATE
FORGETFUL = (
    "{% for m in messages[-4:] %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
)
QUIET = "{% for m in messages if m.role != 'system' %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endfor %}"
CENSORED = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content | replace('x', '') + '<|im_end|>\\n' }}"
    "{% endfor %}"
)
ENDLESS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '\\n' }}{% endfor %}"
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML_TEMPLATE
MERGED = "{% for m in messages %}{{ m.role + ' ' + m.content + '<|im_end|>' }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    texts = [f"how are you {i}? assistant user system fine, thanks\n\n" for i in range(200)]
    return tokenizers.train(texts, tmp_path_factory.mktemp("tokenizer"), vocab_size=420).where


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def renderer(folder):
    return Renderer(tokenizers.load(folder))


def with_template(folder, tmp_path, template):
    tokenizers.load(folder).save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    return tokenizers.load(tmp_path)


def conversation(*turns, name="test/1"):
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return Conversation(name, "test", tuple(Message(roles[role], content) for role, content in turns), "g")


CHAT = conversation(("s", "be you"), ("u", "hi"), ("a", "hey, you"), ("u", "fine?"), ("a", "thanks"))

# Content that begins with white space is cut from its header on purpose, see Renderer.render
content = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda t: t == t.lstrip())
turns = st.lists(st.tuples(st.sampled_from("sua"), content), min_size=1, max_size=9)


def chat_of(conversation):
    return [{"role": m.role, "content": m.content} for m in conversation.messages]


@settings(max_examples=60, deadline=None)
@given(turns=turns)
def test_ids_equal_transformers_chat_template(renderer, theirs, turns):
    c = conversation(*turns)
    assert renderer.render([c])[0].tokens.tolist() == theirs.apply_chat_template(chat_of(c), return_dict=False)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(st.sampled_from("sua"), st.text(max_size=20)), min_size=1, max_size=9))
def test_spans_hold_the_trained_contents_and_the_end_of_each_turn(renderer, turns):
    c = conversation(*((role, text.encode(errors="ignore").decode()) for role, text in turns))
    d = renderer.render([c])[0]
    decode = renderer.tokenizer.decode
    trained = [m.content + TURN_END for m in c.messages if m.role == "assistant"]
    assert [decode(d.tokens[a:b]) for a, b in d.loss_spans] == trained
    assert all(d.tokens[b - 1] == renderer.end_of_turn for _, b in d.loss_spans)
    edges = [*d.turn_starts, len(d.tokens)]
    pieces = [decode(d.tokens[a:b]) for a, b in pairwise(edges)]
    assert pieces == [f"{TURN_START}{m.role}\n{m.content}{TURN_END}\n" for m in c.messages]
    assert d.tokens.dtype == d.loss_spans.dtype == d.turn_starts.dtype == np.int32


def test_sampling_continues_a_prefix_of_what_was_trained(renderer):
    trained = renderer.render([CHAT])[0]
    prompt = renderer.prompt(CHAT.messages[:-1])
    begin = trained.loss_spans[-1, 0]
    assert np.array_equal(prompt, trained.tokens[:begin])


def test_a_batch_is_its_conversations_one_by_one(renderer):
    chats = [CHAT, conversation(("a", "hi")), conversation(("u", "hi"), ("a", "")), CHAT]
    for c, d in zip(chats, renderer.render(chats), strict=True):
        alone = renderer.render([c])[0]
        assert d.id == c.id and np.array_equal(d.tokens, alone.tokens)
        assert np.array_equal(d.loss_spans, alone.loss_spans)


def test_typing_the_end_of_turn_ends_no_turn(renderer):
    d = renderer.render([conversation(("u", f"{TURN_END}\n{TURN_START}assistant\nyes"), ("a", "no"))])[0]
    assert (d.tokens == renderer.end_of_turn).sum() == 2


@pytest.mark.parametrize("template", [BLOCKS, TRIMMED, GREETED], ids=["blocks", "trimmed", "greeted"])
def test_any_prefix_stable_template_is_rendered_as_it_says(folder, tmp_path, template):
    tokenizer = with_template(folder, tmp_path, template)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    chats = [CHAT, conversation(*[("u", "so"), ("a", " well ")] * 7), conversation(("u", "hi"), ("a", "you"))]
    renderer = Renderer(tokenizer)
    for c, d in zip(chats, renderer.render(chats), strict=True):
        assert renderer.tokenizer.decode(d.tokens) == theirs.apply_chat_template(chat_of(c), tokenize=False)
        answers = [renderer.tokenizer.decode(d.tokens[a:b]) for a, b in d.loss_spans]
        keep = str.strip if template is TRIMMED else str
        assert answers == [keep(m.content) + TURN_END for m in c.messages if m.role == "assistant"]


REFUSED = {
    "thinking": (THINKING, CHAT, "not prefix-stable"),
    "counted": (COUNTED, CHAT, "not prefix-stable"),
    "forgetful": (FORGETFUL, conversation(*[("u", "so"), ("a", "well")] * 5), "not prefix-stable"),
    "quiet": (QUIET, CHAT, "leaves out a message"),
    "censored": (CENSORED, conversation(("u", "axe"), ("a", "no")), "not prefix-stable"),
    "endless": (ENDLESS, conversation(("a", "hey")), "could not learn to stop"),
    "strict": (STRICT, CHAT, "the chat template refuses it .no system here"),
    "merged": (MERGED, CHAT, "merges .* with the chat markup"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_cannot_be_trained_is_refused_by_row(folder, tmp_path, name):
    template, chat, reason = REFUSED[name]
    tokenizer = with_template(folder, tmp_path, template)
    with pytest.raises(ValueError, match=reason) as error:
        Renderer(tokenizer).render([chat])
    assert "\n" not in str(error.value)
    assert "document 'test/1'" in str(error.value)
    assert len(Renderer(tokenizer, "chatml").render([chat])[0].tokens) > 0  # the way out that the message names


def test_one_bad_conversation_among_good_ones_is_the_one_named(folder, tmp_path):
    renderer = Renderer(with_template(folder, tmp_path, THINKING))
    good = conversation(("u", "hi"), ("a", "hey"), name="test/good")
    assert len(renderer.render([good, good])) == 2
    with pytest.raises(ValueError, match="'test/1'"):
        renderer.render([good, CHAT, good])


def test_work_is_linear_in_the_length_of_a_conversation(folder, tmp_path, monkeypatch):
    rendered, encoded = [], []
    real_render = JinjaTemplate.render

    def counting(self, messages, *args, **options):
        rendered.append(len(messages))
        return real_render(self, messages, *args, **options)

    monkeypatch.setattr(JinjaTemplate, "render", counting)
    renderer = Renderer(with_template(folder, tmp_path, BLOCKS))
    real_encode = renderer.tokenizer.encode_batch
    monkeypatch.setattr(renderer.tokenizer, "encode_batch", lambda t: (encoded.append(len(t)), real_encode(t))[1])

    def work(length):
        chat = conversation(*[("ua"[i % 2], f"message {i}") for i in range(length)])
        renderer.render([chat])  # learns the frames of this length's roles
        rendered.clear(), encoded.clear()
        renderer.render([chat])
        return sum(rendered), sum(encoded)

    for length in (10, 301, 1200):
        messages_rendered, contents_encoded = work(length)
        assert messages_rendered <= 3 * length
        assert contents_encoded == length


def test_a_tokenizer_without_template_or_markup_is_refused(folder, tmp_path):
    tokenizer = tokenizers.load(folder)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template; set data.chat_format=chatml"):
        Renderer(tokenizer)
    tokenizer.specials = {}
    with pytest.raises(ValueError, match="chat_format chatml needs the special tokens"):
        Renderer(tokenizer, "chatml")
