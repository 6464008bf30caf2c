"""The standard panel: every detector, with what calibrate.py measured on human text (thresholds.json, probes.json).

panel = standard_panel(SentenceEncoder("cuda"), mode="train", without=("length",))
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osim_core.reward.detectors import Detector, Mode, Panel
from osim_core.reward.detectors.acts import ACTS, SpeechAct, read_probes
from osim_core.reward.detectors.collapse import Collapse
from osim_core.reward.detectors.copying import Copying
from osim_core.reward.detectors.formatting import Formatting
from osim_core.reward.detectors.hedging import Hedging
from osim_core.reward.detectors.length import HumanLengths, Length
from osim_core.reward.detectors.repetition import Repetition
from osim_core.reward.detectors.rubric_recital import RubricRecital
from osim_core.reward.similarity import SentenceEncoder

CALIBRATION = Path(__file__).parent / "thresholds.json"


def read_calibration() -> dict[str, Any]:
    """thresholds.json: provenance, thresholds and registers."""
    return json.loads(CALIBRATION.read_text(encoding="utf-8"))


def standard_detectors(registers: Mapping[str, Any], probes: Mapping[str, SpeechAct]) -> list[Detector]:
    """All of them. registers: name -> {"lengths", "marks"} of human text; probes: the fitted speech acts."""
    return [
        *(probes[act] for act in ACTS if act != "hedging"),
        Hedging(probes["hedging"]),
        RubricRecital(),
        Copying(),
        Repetition(),
        Length({name: HumanLengths.from_json(row["lengths"]) for name, row in registers.items()}),
        Formatting({name: row["marks"] for name, row in registers.items()}),
        Collapse(),
    ]


def standard_panel(
    encoder: SentenceEncoder, *, mode: Mode = "audit", penalty: float = 0.0, without: Sequence[str] = ()
) -> Panel:
    """A panel of the standard detectors but for those named in `without` (ValueError for one that is not there)."""
    calibration = read_calibration()
    detectors = standard_detectors(calibration["registers"], read_probes())
    unknown = set(without) - {detector.name for detector in detectors}
    if unknown:
        raise ValueError(
            f"detectors: no {', '.join(sorted(unknown))}; there are {', '.join(d.name for d in detectors)}"
        )
    return Panel(
        detectors=[detector for detector in detectors if detector.name not in without],
        thresholds={name: row["thresholds"] for name, row in calibration["detectors"].items()},
        encoder=encoder,
        mode=mode,
        penalty=penalty,
    )
