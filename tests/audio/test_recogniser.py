"""The shipped recogniser of spoken digits: what it reads, and how well it hears real test takes."""

from pathlib import Path

import pytest
import torch

from fewstep.artifacts import read_config
from fewstep.metrics import frechet_distance
from fewstep_audio import recogniser as module
from fewstep_audio.data.fsdd import SpokenDigits
from fewstep_audio.data.recordings import Recordings
from fewstep_audio.mels import PRESETS
from fewstep_audio.recogniser import DigitsRecogniser, fit_frames, recognise, recogniser, speech_features

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "speech" / "fsdd"
MEL = PRESETS["digits_8k"]
SHIPPED = Path(module.__file__).parent / "digits_recogniser"


def mels(count, frames, seed=0):
    return -3 + 2 * torch.rand(count, 40, frames, generator=torch.Generator().manual_seed(seed))


def test_it_is_small_and_says_where_it_comes_from():
    assert sum(p.numel() for p in DigitsRecogniser().parameters()) < 100_000
    assert sum(f.stat().st_size for f in SHIPPED.iterdir()) < 400_000
    provenance = read_config(SHIPPED)["provenance"]
    assert provenance["scores"]["val/accuracy"] >= 0.98
    assert "CC BY-SA 4.0" in provenance["data_licence"] and provenance["recipe"] == "recipes/audio/fsdd_recogniser.yaml"


def test_mels_of_any_length_are_cut_or_followed_by_silence():
    long, short = mels(2, 90), mels(2, 30)
    assert torch.equal(fit_frames(long), long[..., :64])
    fitted = fit_frames(short)
    assert torch.equal(fitted[..., :30], short) and (fitted[..., 30:] == -3).all()
    told = fit_frames(long, torch.tensor([20, 100]))
    assert torch.equal(told[0, :, :20], long[0, :, :20]) and (told[0, :, 20:] == -3).all()
    assert torch.equal(told[1], long[1, :, :64])


def test_what_lies_beyond_a_clips_frames_is_not_heard():
    padded = mels(3, 64)
    frames = torch.tensor([10, 40, 64])
    alone = torch.cat([speech_features(padded[i : i + 1, :, :n]) for i, n in enumerate(frames.tolist())])
    assert torch.allclose(speech_features(padded, frames), alone, atol=1e-5)
    assert speech_features(padded).shape == (3, 64)
    assert torch.equal(recognise(padded, frames), recogniser()(fit_frames(padded, frames)).argmax(1))


def test_features_have_a_unit_of_their_own():
    features = speech_features(mels(5, 50))
    assert features.mean(1).abs().max() < 1e-5
    assert torch.allclose(features.var(1, correction=0), torch.ones(5), atol=1e-3)


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no spoken digits")
def test_it_hears_the_official_test_takes_and_tells_real_speech_from_changed():
    train, test = SpokenDigits(str(DATA)).division()
    heard = [Recordings(part, 8000) for part in (test, train[::9])]
    real = [[MEL(r.wave[None]) for r in (recs[i] for i in range(len(recs)))] for recs in heard]
    found = torch.cat([recognise(m) for m in real[0]])
    assert (found == torch.tensor([u.label for u in test])).float().mean() >= 0.98
    features = [torch.cat([speech_features(m) for m in part]) for part in real]
    floor = frechet_distance(features[0], features[1])
    backwards = torch.cat([speech_features(m.flip(2)) for m in real[0]])
    blurred = torch.cat([speech_features(0.5 * (m + m.mean(2, keepdim=True))) for m in real[0]])
    for changed in (backwards, blurred):
        assert frechet_distance(changed, features[1]) > 3 * floor
