"""The registry: picks by device, obeys overrides, refuses impossible ones, says its choice once."""

import logging

import pytest
import torch

from osim_kernels import registry
from osim_kernels.registry import Implementation, Op
from osim_kernels.rms_norm import rms_norm

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    """No overrides and no choices remembered from other tests; ops declared here disappear again."""
    monkeypatch.delenv(registry.VARIABLE, raising=False)
    monkeypatch.setattr(registry, "_logged", set())
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))
    monkeypatch.setattr(registry, "_config_override", "")


def toy() -> Op:
    def only_even(device, dtype, *, size=2):
        return None if size % 2 == 0 else f"size {size} is odd"

    def only_cuda(device, dtype, **case):
        return "needs a CUDA device" if device.type != "cuda" else None

    return Op(
        "toy",
        Implementation(name="gpu", load=lambda: lambda: "gpu", refuses=only_cuda),
        Implementation(name="even", load=lambda: lambda: "even", refuses=only_even),
        Implementation(name="any", load=lambda: lambda: "any", refuses=registry.anywhere),
    )


def test_the_first_implementation_that_can_run_the_case_is_chosen():
    op = toy()
    assert op.select(CPU, torch.float32, size=2)() == "even"
    assert op.select(CPU, torch.float32, size=3)() == "any"
    assert op.select(torch.device("cuda", 0), torch.float32, size=3)() == "gpu"


def test_choice_and_reasons_are_logged_once(caplog):
    op = toy()
    with caplog.at_level(logging.INFO, logger="osim_kernels"):
        for _ in range(3):
            op.select(CPU, torch.float32, size=3)
    assert [record.message for record in caplog.records] == [
        "kernels: toy -> any (first that runs on cpu float32; not gpu: needs a CUDA device, even: size 3 is odd)"
    ]


def test_other_ranks_stay_silent(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level(logging.INFO, logger="osim_kernels"):
        toy().select(CPU, torch.float32)
    assert not caplog.records


def test_the_environment_wins_over_the_config_and_applies_to_the_next_call(monkeypatch):
    op = toy()
    registry.use("toy=any")
    assert op.select(CPU, torch.float32, size=2)() == "any"
    monkeypatch.setenv(registry.VARIABLE, " toy=even , rms_norm=reference")
    assert op.select(CPU, torch.float32, size=2)() == "even"
    monkeypatch.delenv(registry.VARIABLE)
    registry.use("")
    assert op.select(CPU, torch.float32, size=2)() == "even"


def test_an_override_that_cannot_run_is_an_error_naming_why(monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, "rms_norm=liger")
    with pytest.raises(ValueError, match="rms_norm=liger cannot run on cpu float32: needs a CUDA device"):
        rms_norm(torch.ones(2, 4), torch.ones(4), 1e-6)
    monkeypatch.setenv(registry.VARIABLE, "toy=even")
    with pytest.raises(ValueError, match="toy=even cannot run on cpu float32: size 3 is odd"):
        toy().select(CPU, torch.float32, size=3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("toy", "'toy' is not op=implementation"),
        ("tyo=any", "unknown op 'tyo'; known ops: .*rms_norm.*toy"),
        ("toy=gpuu", "toy has no implementation 'gpuu'; it has gpu, even, any"),
    ],
)
def test_a_misspelt_override_is_an_error(overrides, message, monkeypatch):
    op = toy()
    with pytest.raises(ValueError, match=message):
        registry.use(overrides)
    monkeypatch.setenv(registry.VARIABLE, overrides)
    with pytest.raises(ValueError, match=message):
        op.select(CPU, torch.float32)


def test_nothing_that_can_run_is_an_error():
    op = Op("cuda_only", Implementation(name="gpu", load=lambda: None, refuses=registry.needs_cuda))
    with pytest.raises(ValueError, match="no implementation of cuda_only runs on cpu float32: gpu: needs a CUDA"):
        op.select(CPU, torch.float32)


def test_report_covers_every_op_and_each_has_a_reference_that_runs_here():
    rows = registry.report(CPU, torch.float32)
    assert {"packed_attention", "fused_linear_logprob", "rms_norm", "rope", "swiglu"} <= rows.keys()
    assert all(row["reference"] is None for row in rows.values())
    assert rows["packed_attention"]["varlen"] == "needs a CUDA device"
