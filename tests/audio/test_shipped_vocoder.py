"""The vocoder that comes with the package: what `vocode` and `speak` take unless told otherwise, and that it is better than phases without a network."""

from pathlib import Path

import pytest
import torch

from fewstep.artifacts import load_as, read_config
from fewstep_audio.bench.vocoder import clips, judged
from fewstep_audio.commands_speak import GRIFFIN_LIM
from fewstep_audio.commands_vocode import DEFAULT_MODEL
from fewstep_audio.griffin_lim import GriffinLim
from fewstep_audio.mels import PRESETS, Mel
from fewstep_audio.speak import chosen
from fewstep_audio.vocoder.vocoder import Vocoder

DATA = Path(__file__).parents[3] / "shared" / "data" / "speech" / "fsdd"


def test_speech_takes_the_vocoder_that_fits_its_mel():
    name, vocoder = chosen(None, PRESETS["digits_8k"])
    assert name == "fsdd_specflow_turbo" and isinstance(vocoder, Vocoder) and vocoder.steps == 2
    other = Mel(8000, 512, 512, 128, 30, 0, 4000)
    for given, mel in ((None, other), (GRIFFIN_LIM, PRESETS["digits_8k"])):
        name, vocoder = chosen(given, mel)
        assert name == GRIFFIN_LIM and isinstance(vocoder, GriffinLim) and vocoder.mel == mel
    assert load_as(DEFAULT_MODEL, Vocoder).mel.fingerprint == PRESETS["digits_8k"].fingerprint  # 4000 and 4000.0 Hz
    assert read_config(DEFAULT_MODEL)["provenance"]["recipe"] == "audio/fsdd_specflow_turbo"


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no spoken digits")
def test_copies_of_held_out_digits_are_better_than_griffin_lims():
    mel, model = PRESETS["digits_8k"], load_as(DEFAULT_MODEL, Vocoder)
    waves = clips(str(DATA), 24, mel)
    with torch.no_grad():
        own, floor = (judged(v, mel, waves) for v in (model.vocode, GriffinLim(mel).vocode))
    assert own["pesq"]["mean"] > floor["pesq"]["mean"] + 0.1
    assert own["mel"]["mean"] < floor["mel"]["mean"]
