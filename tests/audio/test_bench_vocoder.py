"""The bench of vocoders: its figures on copies whose scores are known, and its systems."""

from pathlib import Path

import pytest
import torch
import yaml

from fewstep import recipes
from fewstep_audio.bench.vocoder import FAMILIES, clips, judged
from fewstep_audio.griffin_lim import GriffinLim
from fewstep_audio.mels import PRESETS

DIGITS = Path(__file__).parents[2].parent / "shared" / "data" / "speech" / "fsdd"
MEL = PRESETS["digits_8k"]


@pytest.mark.data
@pytest.mark.skipif(not DIGITS.is_dir(), reason="no recordings")
def test_figures_of_known_copies():
    waves = clips(str(DIGITS), 3, MEL)
    assert len(waves) == 3 and all(len(w) % 128 == 0 and len(w) >= 2000 for w in waves)
    same = iter([w[None] for w in waves])
    perfect = judged(lambda mel: next(same), MEL, waves)
    assert perfect["pesq"]["mean"] == pytest.approx(4.549, abs=0.001)  # the scale's end
    assert perfect["mel"]["mean"] == 0 and perfect["level"]["mean"] == pytest.approx(0, abs=1e-6)
    quiet = iter([w[None] / 2 for w in waves])
    half = judged(lambda mel: next(quiet), MEL, waves)
    assert half["pesq"]["mean"] > 4.4, "PESQ does not hear the level"
    assert half["level"]["mean"] == pytest.approx(-6.02, abs=0.01) and half["mel"]["mean"] > 0.5
    floor = judged(GriffinLim(MEL).vocode, MEL, waves)
    assert 1 < floor["pesq"]["mean"] < 4 and floor["cpu"]["mean"] > 0


def test_systems_are_sampled_in_the_evaluations_that_they_say():
    for family in FAMILIES.values():
        for system in family.values():
            own = yaml.safe_load(recipes.find(f"audio/{system.recipe}").read_text())["model"]["init_args"]
            student = own.get("student", own.get("teacher"))["init_args"]
            two_stages = system.solver is None and "discriminators" not in own
            assert system.evaluations == system.steps * (1 + two_stages)
            if two_stages:
                assert student["solver"]["init_args"]["tableau"]["init_args"]["a"] == [[0.5]]
            else:
                assert "discriminators" not in own or system.steps == own["steps"]
    assert {s.evaluations for s in FAMILIES["specflow"].values()} == {32, 2, 1}


def test_every_clip_is_heard_whole():
    wave = torch.sin(torch.arange(4096) / 9.0) * 0.3
    seen = []
    judged(lambda mel: (seen.append(mel.shape), wave[None])[1], MEL, [wave])
    assert seen == [(1, 40, 32)]
