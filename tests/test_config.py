"""A config survives its JSON file unchanged, and a file that does not fit is one line naming the key."""

import json

import pytest

from configs import CONFIGS
from osim_core.config import MidtrainConfig, from_dict, to_dict


def changed(path: str, value) -> dict:
    """tiny-cpu as a dict, with the value at a dotted path replaced."""
    values = json.loads(json.dumps(to_dict(CONFIGS["tiny-cpu"])))
    *parents, key = path.split(".")
    place = values
    for parent in parents:
        place = place[parent]
    place[key] = value
    return values


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_survives_json(name):
    config = CONFIGS[name]
    assert config.name == name
    assert from_dict(MidtrainConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("modle", {}, r"config: unknown key 'modle'; known keys: checkpoint, data, layout, model"),
        ("layout.tensr", 2, r"config\.layout: unknown key 'tensr'"),
        ("train.steps", "many", r"config\.train\.steps: expected int, got 'many'"),
        ("train.steps", 1.5, r"config\.train\.steps: expected int, got 1\.5"),
        ("train.steps", True, r"config\.train\.steps: expected int, got True"),
        ("train.steps", None, r"config\.train\.steps: expected int, got None"),
        ("optimizer.learning_rate", "1e-3", r"config\.optimizer\.learning_rate: expected float, got '1e-3'"),
        ("layout.sequence_parallel", 1, r"config\.layout\.sequence_parallel: expected bool, got 1"),
        ("train.precision", "fp4", r"config\.train\.precision: 'fp4' is not one of \('fp32', 'bf16', 'fp8'\)"),
        ("model", [], r"config\.model: expected an object, got \[\]"),
        ("data.sources", ["chitchat"], r"config\.data\.sources: expected an object"),
        ("data.paths", "chats.jsonl", r"config\.data\.paths: expected a list, got 'chats\.jsonl'"),
        ("data.paths", [3], r"config\.data\.paths\[0\]: expected str, got 3"),
        ("data.sources", {"chitchat": "two"}, r"config\.data\.sources\.chitchat: expected float, got 'two'"),
        ("model.from_hf", 7, r"config\.model\.from_hf: expected str, got 7"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(path, value, message):
    with pytest.raises(ValueError, match=message):
        from_dict(MidtrainConfig, changed(path, value))


def test_a_missing_key_is_named():
    values = to_dict(CONFIGS["tiny-cpu"])
    del values["train"]["steps"]
    with pytest.raises(ValueError, match=r"run/config\.json\.train: missing key 'steps'"):
        from_dict(MidtrainConfig, values, where="run/config.json")


def test_json_may_write_a_float_without_its_point():
    assert from_dict(MidtrainConfig, changed("optimizer.learning_rate", 1)).optimizer.learning_rate == 1.0
    scaled = from_dict(MidtrainConfig, changed("model.rope_scaling", {"rope_type": "linear", "factor": 2}))
    assert scaled.model.rope_scaling == {"rope_type": "linear", "factor": 2}
