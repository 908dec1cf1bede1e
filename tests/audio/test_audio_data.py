"""Corpora, filelists, recordings, noise and the data modules: every layout, and what happens to bad files (P17)."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fewstep.train.fit import quiet
from fewstep_audio.data.degradation import AddedNoise
from fewstep_audio.data.digit_mels import DigitMels
from fewstep_audio.data.enhancement_crops import EnhancementCrops
from fewstep_audio.data.enhancement_pairs import EnhancementPairs
from fewstep_audio.data.filelists import read_filelist
from fewstep_audio.data.fsdd import WORDS, SpokenDigits
from fewstep_audio.data.mel_cache import MelCache
from fewstep_audio.data.noise import Babble, Coloured, White, mix
from fewstep_audio.data.recordings import Recordings, crop, fill
from fewstep_audio.data.speech import Speech
from fewstep_audio.data.spoken_text import SpokenText
from fewstep_audio.data.utterance import Utterance
from fewstep_audio.data.wave_crops import WaveCrops
from fewstep_audio.files import AudioError
from fewstep_audio.mels import PRESETS, Mel

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "speech"
MEL = PRESETS["digits_8k"]


def save(path, samples=4000, rate=8000, level=0.3, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.random.default_rng(seed).uniform(-1, 1, samples)
    soundfile.write(path, wave, rate, subtype="PCM_16")
    return path


def digits(folder, takes=7, speakers=("ann", "bob"), samples=4000):
    for digit, (k, speaker), take in itertools.product(range(10), enumerate(speakers), range(takes)):
        save(folder / f"{digit}_{speaker}_{take}.wav", samples + 37 * take, seed=100 * digit + 10 * k + take)
    return folder


class Letters:
    """A spelling with a blank between letters, in one line."""

    def normalise(self, text):
        return text.lower()

    def ids(self, text):
        if not text.isalpha():
            raise ValueError(f"unknown symbols in {text!r}")
        return torch.tensor([0] + [i for c in text for i in (ord(c) - 96, 0)])


def first(module, n=1):
    module.setup("fit")
    return list(itertools.islice(module.train_dataloader(), n))


# --- filelists ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding, end", [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_ljspeech_with_quotes_and_without_the_normalised_column(tmp_path, encoding, end):
    lines = ['a|Dr. "X" said|Doctor "X" said', "b|only raw", "c|raw three|", 'd|"quoted|"quoted']
    (tmp_path / "wavs").mkdir()
    (tmp_path / "metadata.csv").write_bytes((end.join(lines) + end).encode(encoding))
    found, layout = read_filelist(tmp_path / "metadata.csv")
    assert [u.text for u in found] == ['Doctor "X" said', "only raw", "raw three", '"quoted']
    assert [u.path for u in found] == [tmp_path / "wavs" / f"{n}.wav" for n in "abcd"]
    assert "LJSpeech" in layout


@pytest.mark.parametrize(
    "lines, layout, expected",
    [
        (["x/a.wav|hello you", "x/b.wav|bye"], "path|text", [("hello you", ""), ("bye", "")]),
        (["x/a.wav|12|hello you", "x/b.wav|12|bye"], "path|speaker|text", [("hello you", "12"), ("bye", "12")]),
        (["x/a.wav|hello you|p1", "x/b.wav|bye|p1"], "path|text|speaker", [("hello you", "p1"), ("bye", "p1")]),
        (["x/a.wav|seven|p1", "x/b.wav|one|p1"], "path|text|speaker", [("seven", "p1"), ("one", "p1")]),
        (["x/a.wav", "x\\b.wav"], "path", [("", ""), ("", "")]),
    ],
)
@pytest.mark.parametrize("encoding, end", [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_filelists_are_recognised_and_reported(tmp_path, lines, layout, expected, encoding, end):
    save(tmp_path / "x" / "b.wav")
    (tmp_path / "list.txt").write_bytes((end.join(lines) + end + end).encode(encoding))
    found, told = read_filelist(tmp_path / "list.txt")
    assert told == f"list.txt: 2 lines of {layout}"
    assert [(u.text, u.speaker) for u in found] == expected
    assert [u.path for u in found] == [tmp_path / "x" / "a.wav", tmp_path / "x" / "b.wav"]


def test_lines_with_other_columns_are_named_and_skipped(tmp_path):
    (tmp_path / "list.txt").write_text("a.wav|one\nb.wav\nc.wav|three\n|no path\n")
    with pytest.warns(UserWarning, match=r"list.txt, line (2|4): '(b.wav|\|no path)'") as told:
        found, _ = read_filelist(tmp_path / "list.txt")
    assert [u.text for u in found] == ["one", "three"] and len(told) == 2


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "the list is empty"),
        (b"\n\n", "the list is empty"),
        (b"a|b|c|d\n", "4 columns"),
        (b"a.wav|x|y\nb.wav|z|w\n", "cannot tell texts from speakers"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_lists_are_refused_in_one_line(tmp_path, content, words):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(AudioError, match=words) as error:
        read_filelist(tmp_path / "list.txt")
    assert "\n" not in str(error.value)


# --- corpora -----------------------------------------------------------------------------------------------------


def test_spoken_digits_are_divided_by_take(tmp_path):
    digits(tmp_path)
    (tmp_path / "notes.wav").touch()
    train, test = SpokenDigits(str(tmp_path)).division()
    assert {u.path.stem.split("_")[2] for u in test} == set("01234") and len(test) == 100
    assert {u.path.stem.split("_")[2] for u in train} == set("56") and len(train) == 40
    assert all(WORDS[u.label] == u.text and u.path.stem.startswith(f"{u.label}_{u.speaker}_") for u in train + test)
    assert {u.speaker for u in SpokenDigits(str(tmp_path), ["bob"]).division()[0]} == {"bob"}
    with pytest.raises(AudioError, match="no recording of eve; allowed: ann, bob"):
        SpokenDigits(str(tmp_path), ["eve"]).division()


def test_plain_folders_have_sidecars_and_hold_out_every_tenth(tmp_path):
    for i in range(12):
        save(tmp_path / "deep" / f"{i:02}.wav", seed=i)
    (tmp_path / "deep" / "03.txt").write_text("\ufeffHello\r\n  there\n", encoding="utf-8")
    (tmp_path / "deep" / "04.lab").write_text("four")
    corpus = Speech(str(tmp_path))
    train, held = corpus.division()
    assert [u.path.stem for u in held] == ["00", "10"] and len(train) == 10
    assert {u.path.stem: u.text for u in train if u.text} == {"03": "Hello there", "04": "four"}
    assert corpus.layout == f"{tmp_path.name}: 12 audio files, 2 with texts beside them"


def test_an_empty_folder_is_an_error_of_one_line(tmp_path):
    with pytest.raises(AudioError, match="no audio in it or below; allowed: at least one of .wav") as error:
        Speech(str(tmp_path)).division()
    assert "\n" not in str(error.value)


# --- recordings --------------------------------------------------------------------------------------------------


def bad_folder(folder):
    good = save(folder / "good.wav"), save(folder / "stereo.wav", 9600, 16000)
    soundfile.write(good[1], np.stack([np.full(9600, 0.5), np.full(9600, 0.1)], 1), 16000)
    save(folder / "silent.wav", level=0)
    save(folder / "short.wav", 100)
    (folder / "text.wav").write_text("words")
    (folder / "empty.wav").touch()
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan] * 1000), 8000, subtype="FLOAT")
    return [Utterance(p) for p in sorted(folder.glob("*.wav"))] + [Utterance(folder / "gone.wav")]


def test_unusable_files_are_named_with_their_reason_and_skipped(tmp_path):
    utterances = bad_folder(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        recordings = Recordings(utterances, 8000)
    assert [u.path.name for u in recordings.utterances] == ["good.wav", "stereo.wav"]
    reasons = {
        "empty": "empty",
        "gone": "no such",
        "nan": "nan",
        "short": "0.013 sec",
        "silent": "silent",
        "text": "read",
    }
    for name, reason in reasons.items():
        assert sum(f"{name}.wav" in str(w.message) and reason in str(w.message) for w in told) == 1
    assert len(told) == 6
    assert len(recordings[1].wave) == 4800
    assert recordings[1].wave[1000:-1000].mean() == pytest.approx(0.3, abs=1e-3)  # mono at 8 kHz
    with pytest.warns(UserWarning), pytest.raises(AudioError, match="none of 1 recordings is usable"):
        Recordings([Utterance(tmp_path / "silent.wav")], 8000)


def test_long_corpora_are_decoded_on_demand_with_the_next_good_one_in_the_place_of_a_bad_one(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep_audio.data.recordings.KEPT_SECONDS", 0)
    utterances = bad_folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recordings = Recordings(utterances, 8000)
    names = [u.path.stem for u in recordings.utterances]
    assert names == ["good", "nan", "silent", "stereo"] and not recordings._waves
    with pytest.warns(UserWarning, match="nan or inf"):
        assert [recordings[i].utterance.path.stem for i in range(4)] == ["good", "stereo", "stereo", "stereo"]


def test_a_stretch_is_random_and_never_silent(tmp_path):
    wave = torch.zeros(10_000)
    wave[7000] = 1
    starts = {int(crop(wave, 100, torch.Generator().manual_seed(s)).argmax()) for s in range(20)}
    assert all(crop(wave, 100, torch.Generator().manual_seed(s)).abs().max() == 1 for s in range(20)) and starts
    for i in range(3):
        save(tmp_path / f"{i}.wav", 1000, seed=i)
    recordings = Recordings([Utterance(p) for p in sorted(tmp_path.glob("*.wav"))], 8000)
    filled = fill(recordings, 1, 2500, torch.Generator().manual_seed(0))
    assert torch.equal(filled[:1000], recordings[1].wave) and len(filled) == 2500
    assert any(torch.equal(filled[1000:2000], recordings[i].wave) for i in range(3))


# --- noise -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talkers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talkers")
    for i in range(5):  # each a tone of its own, so that they can be told apart
        t = np.arange(3000) / 8000
        soundfile.write(
            folder / f"{i}.wav", 0.1 * (i + 1) * np.sin(2 * np.pi * 400 * (i + 1) * t), 8000, subtype="FLOAT"
        )
    return Recordings([Utterance(p) for p in sorted(folder.glob("*.wav"))], 8000)


@pytest.mark.parametrize("snr", [-2.0, 0.0, 7.5])
@pytest.mark.parametrize("kind", [White(), Coloured(), Babble()])
def test_the_snr_is_exact(talkers, kind, snr):
    generator = torch.Generator().manual_seed(0)
    clean = fill(talkers, 2, 8000, generator)
    noisy = mix(clean, kind.draw(8000, talkers, 2, generator), snr)
    ratio = clean.double().square().sum() / (noisy.double() - clean.double()).square().sum()
    assert 10 * ratio.log10() == pytest.approx(snr, abs=1e-4)


def test_an_snr_needs_power():
    with pytest.raises(ValueError, match="no power"):
        mix(torch.zeros(5), torch.ones(5), 0)
    with pytest.raises(ValueError, match="equal shapes"):
        mix(torch.ones(4), torch.ones(5), 0)


def test_drawn_snrs_fill_their_range(talkers):
    clean = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    snrs = []
    for s in range(200):
        noise = AddedNoise(-2, 12)(clean, talkers, 0, torch.Generator().manual_seed(s)) - clean
        snrs.append(float(10 * (clean.square().sum() / noise.square().sum()).log10()))
    assert -2 <= min(snrs) < -1 and 11 < max(snrs) <= 12
    assert np.mean(snrs) == pytest.approx(5, abs=4 * 14 / 12**0.5 / 200**0.5)


@pytest.mark.parametrize("slope", [0.0, 0.5, 0.9])
def test_coloured_noise_has_the_slope_it_says(talkers, slope):
    noise = Coloured(slope, slope).draw(2**17, talkers, 0, torch.Generator().manual_seed(1)).double()
    power = torch.fft.rfft(noise).abs().square()
    edges = (2 ** torch.arange(6.0, 16.1, 0.5)).long()
    bands = torch.stack([power[a:b].mean() for a, b in itertools.pairwise(edges)])
    centres = torch.stack([torch.arange(a, b).double().log().mean() for a, b in itertools.pairwise(edges)])
    line = np.polyfit(centres.numpy(), bands.log().numpy(), 1)
    assert line[0] == pytest.approx(-2 * slope, abs=0.06)
    assert power[0] < 1e-9


def test_babble_is_of_other_voices_at_equal_power(talkers):
    noise = Babble(8).draw(8000, talkers, 2, torch.Generator().manual_seed(3)).double()
    spectrum = torch.fft.rfft(noise).abs()
    tones = [float(spectrum[400 * (i + 1) - 20 : 400 * (i + 1) + 21].square().sum()) for i in range(5)]
    assert tones[2] < 1e-2 * max(tones)  # recording 2 is the clean speech
    assert sum(t > 0.05 * max(tones) for t in tones) >= 3


# --- data modules ------------------------------------------------------------------------------------------------


def test_spoken_text_pads_with_silence_and_tells_lengths(tmp_path, capsys):
    module = SpokenText(SpokenDigits(str(digits(tmp_path))), Letters(), MEL, ["bob", "ann", "eve"], batch_size=6)
    batch = first(module)[0]
    assert "no recording to train the voice of eve\n" in capsys.readouterr().err
    assert set(batch) == {"text", "symbols", "mel", "frames", "speaker", "label"}
    for i in range(6):
        word, frames = WORDS[batch["label"][i]], batch["frames"][i]
        n = batch["symbols"][i]
        assert torch.equal(batch["text"][i, :n], Letters().ids(word)) and not batch["text"][i, n:].any()
        assert (batch["mel"][i, :, frames:] == -3).all()
        path = next(tmp_path.glob(f"{batch['label'][i]}_{['bob', 'ann'][batch['speaker'][i]]}_5.wav"))
        waves = [torch.from_numpy(soundfile.read(path.with_stem(path.stem[:-1] + t), dtype="float32")[0]) for t in "56"]
        assert any(torch.allclose(MEL(w[None])[0], batch["mel"][i, :, :frames], atol=1e-6) for w in waves)
    val = list(module.val_dataloader())
    assert sum(len(b["text"]) for b in val) == 64
    assert torch.cat([b["label"] for b in val]).unique().tolist() == list(range(10))


def test_texts_that_cannot_be_read_or_aligned_are_named_and_skipped(tmp_path):
    for name, text, samples in (
        ("a", "fine", 4000),
        ("b", "12", 4000),
        ("c", "toolongfor", 1000),
        ("d", "good", 4000),
        ("e", "", 4000),
    ):
        save(tmp_path / "data" / f"{name}.wav", samples)
        (tmp_path / "data" / f"{name}.txt").write_text(text)
    module = SpokenText(Speech(str(tmp_path / "data"), str(tmp_path / "data")), Letters(), MEL, batch_size=5)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        batch = first(module)[0]
    assert sorted(batch["frames"].unique().tolist()) == [31] and "speaker" not in batch and "label" not in batch
    for name, reason in (("b", "unknown symbols in '12'"), ("c", "7 frames for 21 symbols"), ("e", "no text")):
        assert any(f"{name}.wav: {reason}" in str(w.message) for w in told)


def test_mels_are_cached_per_preset_and_per_state_of_the_file(tmp_path, monkeypatch):
    path = save(tmp_path / "a.wav")
    calls = []
    monkeypatch.setattr(Mel, "__call__", lambda self, wave, old=Mel.__call__: (calls.append(1), old(self, wave))[1])
    read = lambda mel: MelCache(tmp_path / "cache", mel)(Recordings([Utterance(path)], 8000)[0])
    made, again = read(MEL), read(MEL)
    assert torch.equal(made, again) and len(calls) == 1
    other = Mel(8000, 512, 512, 128, 41, 0, 4000)
    assert read(other).shape[0] == 41 and len(calls) == 2
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == sorted([MEL.fingerprint, other.fingerprint])
    entry = next((tmp_path / "cache" / MEL.fingerprint).iterdir())
    entry.write_bytes(entry.read_bytes()[:100])
    assert torch.equal(read(MEL), made) and len(calls) == 3
    save(path, 4800, seed=5)
    assert read(MEL).shape[1] == 37 and len(calls) == 4


def test_wave_crops_are_stretches_of_the_recordings(tmp_path):
    for i in range(11):
        save(tmp_path / f"{i:02}.wav", 3000 + 500 * i, seed=i)
    module = WaveCrops(Speech(str(tmp_path)), 8000, samples=4096, validation_samples=1024, batch_size=4)
    batch = first(module)[0]["wave"]
    assert batch.shape == (4, 4096)
    waves = [r.wave for r in (module.train.recordings[i] for i in range(9))]
    for row in batch:
        n = len(row) if row[-1] else int(row.nonzero().max()) + 1
        assert any((w.unfold(0, n, 1) == row[:n]).all(1).any() for w in waves if len(w) >= n)
    val = [b["wave"] for b in module.val_dataloader()]
    assert [v.shape for v in val] == [(1, 1024)] * 2
    assert all(torch.equal(a, b["wave"]) for a, b in zip(val, module.val_dataloader(), strict=True))


def test_enhancement_crops_are_the_same_again_for_the_same_seed(tmp_path):
    folder = digits(tmp_path, 6, ["ann"])
    module = lambda seed=0: EnhancementCrops(SpokenDigits(str(folder)), 8000, 6000, 6000, batch_size=4, seed=seed)
    ours, theirs, others = first(module(), 3), first(module(), 3), first(module(1), 3)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a["clean"], b["clean"]) and torch.equal(a["noisy"], b["noisy"])
    assert not torch.equal(ours[0]["noisy"], others[0]["noisy"])
    noise = ours[0]["noisy"] - ours[0]["clean"]
    snr = 10 * (ours[0]["clean"].square().sum(1) / noise.square().sum(1)).log10()
    assert ((snr >= -2.001) & (snr <= 12.001)).all() and len(snr.unique()) == 4


@pytest.mark.parametrize("layout", ["sgmse", "two", "apart"])
def test_pairs_of_all_layouts_stay_aligned(tmp_path, layout):
    root = {"sgmse": tmp_path / "train", "two": tmp_path, "apart": tmp_path}[layout]
    for i in range(11):
        save(root / "clean" / f"{i:02}.wav", 5000, seed=i)
        soundfile.write(
            save(root / "noisy" / f"{i:02}.wav"), soundfile.read(root / "clean" / f"{i:02}.wav")[0] / 2, 8000
        )
    save(root / "clean" / "alone.wav")
    save(root / "clean" / "longer.wav", 5001)
    save(root / "noisy" / "longer.wav", 5000)
    if layout == "sgmse":
        for kind in ("clean", "noisy"):
            save(tmp_path / "valid" / kind / "v.wav", 500, seed=3)
    ways = {"apart": (str(root / "clean"), str(root / "noisy"))}
    module = EnhancementPairs(*ways.get(layout, (str(tmp_path),)), rate=8000, samples=2000, batch_size=4)
    with pytest.warns(UserWarning, match="alone.wav: no partner|5001 samples at 8000 Hz and 5000"):
        batches = first(module, 4)
    for batch in batches:
        assert batch["clean"].shape == (4, 2000)
        assert (batch["noisy"] - batch["clean"] / 2).abs().max() < 1e-4
    assert len(module.val) == (1 if layout == "sgmse" else 2)


def test_pairs_without_a_layout_are_refused(tmp_path):
    with pytest.raises(AudioError, match="no train/clean and train/noisy; allowed"):
        EnhancementPairs(str(tmp_path)).setup()


def test_labelled_mels_are_shifted_in_training_alone(tmp_path):
    module = DigitMels(str(digits(tmp_path, samples=6000)), batch_size=20)
    batch = first(module)[0]
    assert batch["x0"].shape == (20, 40, 64)
    late = (batch["x0"] == -3).all(1).int().argmin(1)
    assert late.min() == 0 and late.max() == 8
    val = next(iter(module.val_dataloader()))
    assert len(val["label"]) == 100 and not (val["x0"][:, :, 0] == -3).all(1).any()
    assert torch.equal(val["label"], torch.arange(10).repeat_interleave(10))


def test_the_layout_is_told(tmp_path, capsys):
    for i in range(3):
        save(tmp_path / f"{i}.wav", seed=i)
    quiet()  # as `fewstep fit` does
    WaveCrops(Speech(str(tmp_path)), 8000).setup()
    found = f"{tmp_path.name}: 3 audio files, 0 with texts beside them"
    assert capsys.readouterr().err == f"speech: {found}; 2 to train on, 1 held out\n"


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="no speech data")
def test_real_corpora_are_read_whole():
    train, test = SpokenDigits(str(DATA / "fsdd")).division()
    assert (len(train), len(test)) == (2250, 250)
    found, layout = read_filelist(DATA / "ljspeech" / "metadata.csv")
    assert (
        "LJSpeech" in layout
        and all(u.path.is_file() for u in found)
        and found[1].text == "in being comparatively modern."
    )
    module = EnhancementPairs(str(DATA / "noisy_pairs"), samples=16000, batch_size=3)
    batch = first(module)[0]
    assert (batch["clean"] * batch["noisy"]).sum() > 0.3 * batch["clean"].square().sum()
