"""How s3prl's own datasets read recordings of other rates and with two channels, task by task, and the launcher."""

import importlib
import inspect
import shutil
from types import SimpleNamespace

import numpy
import pytest
import soundfile
import torch
import torchaudio

from daisy import audio
from daisy.errors import AudioError
from s3prl_upstream import reading, sox
from tests.s3prl_upstream.conftest import lines

pytestmark = pytest.mark.filterwarnings("ignore")


def write_tone(path, rate, channels=1):
    """One second of 1 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 0.5 * numpy.sin(2 * numpy.pi * 1000 * numpy.arange(rate) / rate)
    soundfile.write(path, numpy.stack([tone] * channels, 1), rate, subtype="FLOAT")
    return path


def assert_tone(waveform):
    """One second of 1 kHz at 16 kHz: two channels in a row, or 48 kHz taken for 16, would be longer and elsewhere."""
    waveform = torch.as_tensor(numpy.asarray(waveform)).double()
    assert waveform.shape == (16000,)
    spectrum = torch.fft.rfft(waveform).abs()
    assert int(spectrum.argmax()) == 1000
    inner = waveform[500:-500]
    assert float(inner.square().mean().sqrt() / inner.abs().max()) == pytest.approx(0.5**0.5, rel=0.01)


def made(kind, **attributes):
    """A dataset as it is after its constructor has searched a corpus."""
    dataset = object.__new__(kind)
    vars(dataset).update(attributes)
    return dataset


def read_dataset(task, path):
    """What the dataset of a task gives for a recording."""
    module = importlib.import_module(f"s3prl.downstream.{task}.{'data' if task == 'ctc' else 'dataset'}")
    row = {"path": path.name, "id": path.stem, "u_id": path.stem, "action": 0, "object": 0, "location": 0, "intent": 0}
    table = SimpleNamespace(loc=[type("Row", (dict,), {"path": path.name})(row)])
    slots = {name: {0: 0} for name in ("action", "object", "location", "intent")}
    if task == "fluent_commands":
        return made(module.FluentCommandsDataset, df=table, base_path=str(path.parent), Sy_intent=slots)[0][0]
    if task == "atis":
        return made(module.AtisDataset, df=table, base_path=str(path.parents[1]), type="wav", Sy_intent=slots)[0][0]
    if task == "voxceleb1":
        return made(module.SpeakerClassifiDataset, dataset=[str(path)], label=[0], max_timestep=None)[0][0]
    if task == "mosei":
        return module.MOSEIDataset("wav", [(path.name, 0)], path.parents[2])[0][0]
    if task == "emotion":
        meta = path.parent / "meta.json"
        meta.write_text(f'{{"labels": {{"a": 0}}, "meta_data": [{{"path": "{path.name}", "label": "a"}}]}}')
        return module.IEMOCAPDataset(str(path.parent), str(meta))[0][0]
    if task == "ctc":
        return module.collect_audio_batch([(str(path), [0])], "dev")[0][0]
    if task == "asr":
        return made(module.SequenceDataset, libri_root="", sample_rate=16000)._load_wav(str(path))
    if task in ("phone_linear", "speaker_linear_utter_libri"):
        kind = module.PhoneDataset if task == "phone_linear" else module.SpeakerDataset
        return made(kind, libri_root="", sample_rate=16000)._load_wav(str(path))
    if task == "timit_phone_linear":
        return made(module.PhoneDataset, data_root="", sample_rate=16000)._load_wav(str(path))
    if task == "speech_commands":
        module = importlib.reload(module)  # it takes sox's function by name
        dataset = module.SpeechCommandsBaseDataset()
        dataset.data = [("yes", path)]
        return dataset[0][0]
    if task == "diarization":
        return made(module.KaldiData, wavs={"a": str(path)}).load_wav("a", 0, 16000)[0]
    assert task in ("enhancement_stft2", "separation_stft2")
    source, targets = ("noisy", ["clean"]) if task == "enhancement_stft2" else ("mix_clean", ["s1", "s2"])
    for condition in (source, *targets):
        (path.parent / condition).mkdir(exist_ok=True)
        (path.parent / condition / "wav.scp").write_text(f"a {path}\n")
    return module.SeparationDataset(str(path.parent), src=[source], tgt=targets)[0][1]


RESAMPLED = (
    "asr",
    "atis",
    "ctc",
    "emotion",
    "fluent_commands",
    "mosei",
    "phone_linear",
    "speaker_linear_utter_libri",
    "timit_phone_linear",
    "voxceleb1",
)
"""Tasks that drop the rate, or want 16 kHz and nothing else."""
MIX = ("speech_commands", "enhancement_stft2")
"""Tasks that ask for one channel and 16 kHz themselves."""
REFUSED = ("diarization", "separation_stft2")


@pytest.fixture
def place(tmp_path):
    return tmp_path / "Segmented_Audio" / "wav"


def read_as(task, path):
    with sox.stand_in(), reading.Reading(16000) as audio_reading:
        audio_reading.begin(task)
        try:
            return read_dataset(task, path)
        except ModuleNotFoundError as error:
            pytest.skip(f"needs {error.name}")


@pytest.mark.parametrize("task", [*RESAMPLED, *MIX, *REFUSED])
def test_a_recording_of_the_upstreams_rate_is_left_alone(place, task, capsys):
    assert_tone(read_as(task, write_tone(place / "a.wav", 16000)))
    assert "[daisy]" not in capsys.readouterr().out


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
@pytest.mark.parametrize("task", [*RESAMPLED, *MIX])
def test_other_rates_become_the_upstreams(place, task, rate, capsys):
    path = write_tone(place / "a.wav", rate)
    assert_tone(read_as(task, path))
    note = f"[daisy] {path}: {rate} Hz; recordings of other rates are brought to 16000 Hz\n"
    assert capsys.readouterr().out.count(note) == (task in RESAMPLED)


@pytest.mark.parametrize("task", REFUSED)
def test_other_rates_are_refused_where_a_task_counts_samples_of_the_file(place, task):
    path = write_tone(place / "a.wav", 48000)
    with pytest.raises(AudioError, match=rf"^{path}: 48000 Hz, and -d {task} takes 16000 Hz only: resample it$"):
        read_as(task, path)


@pytest.mark.parametrize("task", [*RESAMPLED, "diarization"])
def test_two_channels_are_refused_by_name(place, task):
    path = write_tone(place / "a.wav", 16000, channels=2)
    with pytest.raises(AudioError, match=rf"^{path}: 2 channels, and s3prl's tasks take one"):
        read_as(task, path)


@pytest.mark.parametrize("task", MIX)
def test_tasks_that_mix_channels_do(place, task):
    assert_tone(read_as(task, write_tone(place / "a.wav", 48000, channels=2)))


def test_tasks_that_resample_themselves_get_the_file_as_it_is(place):
    path = write_tone(place / "a.wav", 22050)
    for task, rate in (("audio_snips", 22050), ("speech_translation", 22050), ("mosei", 16000)):
        with reading.Reading(16000) as audio_reading:
            audio_reading.begin(task)
            samples, found = torchaudio.load(str(path))
        assert (samples.shape, found) == ((1, rate), rate)
    path = write_tone(place / "b.wav", 48000, channels=2)
    with reading.Reading(16000) as audio_reading:
        audio_reading.begin("speech_translation")  # averages channels
        assert torchaudio.load(str(path))[0].shape == (2, 48000)


def test_a_tasks_worker_processes_that_are_no_forks_read_the_same(place, capfd):
    """sv_voxceleb1 sends a function of its own through joblib; the first recording is one of another rate."""
    from joblib import Parallel, delayed

    paths = [str(write_tone(place / f"{rate}.wav", rate)) for rate in (48000, 16000, 8000)]
    with sox.stand_in(), reading.Reading(16000) as audio_reading:
        audio_reading.begin("sv_voxceleb1")
        apply_effects_file = torchaudio.sox_effects.apply_effects_file

        def read_whole(path):
            samples, rate = apply_effects_file(path, [["channels", "1"], ["norm"]])
            return samples[0].numpy(), rate

        outcomes = Parallel(n_jobs=2)(delayed(read_whole)(path) for path in paths)
    assert [rate for _, rate in outcomes] == [16000] * 3
    for samples, _ in outcomes:
        assert_tone(samples)
    assert "[daisy]" not in capfd.readouterr().out


def test_parts_are_counted_in_samples_of_the_file(place):
    """As torchaudio has it, whose info tells the file's rate and length."""
    path = place / "a.wav"
    place.mkdir(parents=True)
    soundfile.write(path, numpy.linspace(-1, 1, 48000), 48000, subtype="FLOAT")
    with reading.Reading(16000):
        info = torchaudio.info(str(path))
        assert (info.sample_rate, info.num_frames) == (48000, 48000)
        part, rate = torchaudio.load(str(path), 24000, 12000)
        transposed, _ = torchaudio.load(str(path), frame_offset=24000, num_frames=12000, channels_first=False)
        by_place, _ = torchaudio.load(str(path), 24000, 12000, True, False)
        named, _ = torchaudio.load(uri=str(path))
    assert (part.shape, rate, transposed.shape, named.shape) == ((1, 4000), 16000, (4000, 1), (1, 16000))
    assert torch.equal(transposed.T, part)
    assert torch.equal(by_place.T, part)
    assert part[0, 100:-100].tolist() == pytest.approx(torch.linspace(0, 0.5, 4000)[100:-100].tolist(), abs=1e-3)


def test_all_is_put_back(place):
    stock = torchaudio.load, torchaudio.info, torchaudio.sox_effects.apply_effects_file, soundfile.read
    with reading.Reading(16000) as audio_reading:
        audio_reading.begin("diarization")
        assert soundfile.read is not stock[3]
    assert (torchaudio.load, torchaudio.info, torchaudio.sox_effects.apply_effects_file, soundfile.read) == stock


def test_every_task_that_reads_audio_is_known(hub):
    """By the words of its source; a newer s3prl may bring others."""
    from pathlib import Path

    import s3prl.downstream

    (folder,) = map(Path, s3prl.downstream.__path__[:1])
    readers = {
        path.parent.name
        for path in folder.glob("*/*.py")
        if path.name not in ("evaluate.py", "vc_evaluate.py", "expert.py", "preprocess.py", "utils.py")
        and any(f"{word}(" in path.read_text() for word in ("sf.read", "librosa.load", "wavfile.read"))
    }
    assert readers == {
        "a2o-vc-vcc2020",  # resamples, and wants the files' own rate besides
        "diarization",
        "enhancement_stft",
        "enhancement_stft2",
        "separation_stft",
        "separation_stft2",
    }
    assert "torchaudio.load" in inspect.getsource(importlib.import_module("s3prl.downstream.runner").Runner.inference)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corpus_at_48_khz_trains_as_the_same_at_16(train, fluent, tmp_path, capsys, workers):
    """To the last bit of the audio; said once, whoever reads."""
    corpora = {rate: tmp_path / str(rate) for rate in (16000, 48000)}
    for rate, corpus in corpora.items():
        shutil.copytree(fluent.parent, corpus)
        for path in sorted((corpus / "wavs").iterdir()):
            samples = audio.resample(audio.read(path), 16000, 48000)
            if rate == 16000:
                samples = audio.resample(samples, 48000, 16000)
            soundfile.write(path, samples.numpy(), rate, subtype="FLOAT")
    data = "config.downstream_expert.datarc"
    logged, said = {}, {}
    for rate, corpus in corpora.items():
        capsys.readouterr()
        train(tmp_path / f"run{rate}", "-o", f"{data}.file_path={corpus},,{data}.num_workers={workers}")
        said[rate] = [line for line in capsys.readouterr().out.splitlines() if "Hz" in line]
        keys = ("split", "utterance", "audio", "duration_sec", "exit_layer")
        logged[rate] = sorted(tuple(row[key] for key in keys) for row in lines(tmp_path / f"run{rate}"))
    assert logged[48000] == logged[16000]
    assert {row[1]: row[3] for row in logged[48000]}["valid1"] == pytest.approx((6000 + 777) / 16000, abs=1e-4)
    assert not said[16000]
    if not workers:  # a worker's lines are not pytest's
        assert len(said[48000]) == 1
        assert said[48000][0].endswith("48000 Hz; recordings of other rates are brought to 16000 Hz")


def test_a_stereo_corpus_is_one_line(fluent, checkpoint, tmp_path, capsys):
    from s3prl_upstream.run_downstream import main

    corpus = tmp_path / "corpus"
    shutil.copytree(fluent.parent, corpus)
    write_tone(corpus / "wavs" / "train3.wav", 16000, channels=2)
    known = ["-m", "train", "-u", "daisy_local", "-k", str(checkpoint), "-d", "fluent_commands", "-c", str(fluent)]
    with pytest.raises(SystemExit) as end:
        main([*known, "-p", str(tmp_path / "run"), "--device", "cpu", "-o",
              f"config.downstream_expert.datarc.file_path={corpus}"])  # fmt: skip
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert f"daisy-s3prl: {corpus}/wavs/train3.wav: 2 channels, and s3prl's tasks take one" in said
    assert "Traceback" not in said


def test_the_upstream_refuses_several_channels(upstream):
    with pytest.raises(AudioError, match=r"utterance 1 of a batch of 2 is of shape \(2, 16000\)"):
        upstream([torch.zeros(16000), torch.zeros(2, 16000)])
