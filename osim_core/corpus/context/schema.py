"""A social context and its checks."""

import json
from dataclasses import asdict, dataclass
from typing import Any

FIELDS = ("persona", "relationship", "scene", "goal")
MAX_CHARACTERS = 600  # of a field that a model writes; what the record states may be longer
HEADINGS = {"persona": "Who you are", "relationship": "Relationship", "scene": "Scene", "goal": "What you want"}

JSON_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS} for name in FIELDS},
    "required": list(FIELDS),
    "additionalProperties": False,
}


class SchemaError(ValueError):
    """A draft is not a social context; the message says why, in words that a model can act on."""


@dataclass(frozen=True, slots=True)
class SocialContext:
    """Four texts about the simulated person; "" where nothing is known."""

    persona: str = ""
    relationship: str = ""
    scene: str = ""
    goal: str = ""

    def __bool__(self) -> bool:
        return any((self.persona, self.relationship, self.scene, self.goal))

    def text(self) -> str:
        """The fields as one text, a line each."""
        return "\n".join(filter(None, (getattr(self, name) for name in FIELDS)))

    def render(self) -> str:
        """The system message: a line per known field."""
        return "\n".join(f"{HEADINGS[name]}: {value}" for name in FIELDS if (value := getattr(self, name)))

    def to_json(self) -> str:
        """One line of JSON, for the store."""
        return json.dumps(asdict(self), ensure_ascii=False)


def parse(text: str) -> SocialContext:
    """What a model wrote, checked: one JSON object with the four fields, each a text of 1 to MAX_CHARACTERS.

    Words around the object (a code fence) are ignored. Raises SchemaError.
    """
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise SchemaError("no JSON object in the answer")
    try:
        value = json.loads(text[start : end + 1])
    except json.JSONDecodeError as error:
        raise SchemaError(f"the JSON object is broken: {error.msg}") from error
    if not isinstance(value, dict) or set(value) != set(FIELDS):
        found = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
        raise SchemaError(f"the fields must be exactly {', '.join(FIELDS)}; got {found or 'none'}")
    for name in FIELDS:
        if not isinstance(value[name], str) or not value[name].strip():
            raise SchemaError(f"{name} must be a text that is not empty")
        if len(value[name]) > MAX_CHARACTERS:
            raise SchemaError(f"{name} has {len(value[name])} characters, at most {MAX_CHARACTERS}")
        try:
            value[name].encode()
        except UnicodeEncodeError as error:
            raise SchemaError(f"{name} is not Unicode text") from error
    return SocialContext(**{name: value[name].strip() for name in FIELDS})


def from_json(text: str) -> SocialContext:
    """What `to_json` wrote."""
    return SocialContext(**json.loads(text))
