"""Teachers: their frames are at the times of HuBERT's, in a window of their own, in a shared one, and in several."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from daisy.errors import UsageError
from daisy.extraction.teachers import FrameTimes, WaveformTeacher, WhisperTeacher, load_teacher, pick_nearest
from daisy.models.lengths import HUBERT_CONV, count_frames

transformers = pytest.importorskip("transformers")


def test_each_frame_gets_the_teachers_nearest():
    """HuBERT's frame t is around sample 320 t + 200."""
    rows = torch.arange(1000.0)[:, None]
    assert pick_nearest(rows, FrameTimes(hop=320, middle=200), 5)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert pick_nearest(rows, FrameTimes(hop=320, middle=0), 3)[:, 0].tolist() == [1, 2, 3]  # Whisper's
    assert pick_nearest(rows, FrameTimes(hop=640, middle=360), 6)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert pick_nearest(rows, FrameTimes(hop=160, middle=200), 3)[:, 0].tolist() == [0, 2, 4]
    assert pick_nearest(rows, FrameTimes(hop=320, middle=200), 2, start=3200)[:, 0].tolist() == [10, 11]
    assert pick_nearest(rows[:2], FrameTimes(hop=320, middle=200), 4)[:, 0].tolist() == [0, 1, 1, 1]


@pytest.fixture(scope="module")
def whisper():
    """A small Whisper encoder whose layers see no other frames: what a frame says is only what is heard there."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64, num_mel_bins=16, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperModel(config)
    with torch.no_grad():
        model.encoder.embed_positions.weight.zero_()
        for layer in model.encoder.layers:
            layer.self_attn.out_proj.weight.zero_()
    return model


def make_teacher(whisper, layer=2):
    return WhisperTeacher(copy.deepcopy(whisper.encoder), layer)


def make_click(num_samples, frame):
    """Quiet noise, loud in the middle of one of HuBERT's frames."""
    waveform = 1e-4 * torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
    middle = 320 * frame + 200
    waveform[middle - 40 : middle + 40] += 0.5 * torch.randn(80, generator=torch.Generator().manual_seed(1))
    return waveform


def find_click(states):
    """The frame that differs most from the others."""
    return int((states - states.median(0).values).norm(dim=1).argmax())


def test_what_is_heard_in_a_frame_is_in_that_frame(whisper):
    """Alone, between others in a shared window, and in every piece of a recording of several windows."""
    teacher = make_teacher(whisper)
    waveforms = [make_click(16000, 10), make_click(23456, 41), make_click(8123, 3)]
    lengths = [len(waveform) for waveform in waveforms]
    assert teacher.fit_together(lengths)
    shared = teacher(waveforms)
    for waveform, states, frame in zip(waveforms, shared, (10, 41, 3), strict=True):
        assert len(states) == count_frames(len(waveform), HUBERT_CONV)
        assert abs(find_click(states) - frame) <= 1
        assert abs(find_click(teacher([waveform])[0]) - frame) <= 1
    clicks = (5, 700, 1392, 1398, 1405, 2700, 3400)  # pieces meet at frame 1399
    for frame in clicks:
        states = teacher([make_click(16000 * 70, frame)])[0]
        assert len(states) == count_frames(16000 * 70, HUBERT_CONV)
        assert abs(find_click(states) - frame) <= 1


def test_pieces_of_a_long_recording_say_what_one_window_says(whisper):
    """Frames heard in the second piece are those that a window beginning a little later gives."""
    teacher = make_teacher(whisper)
    waveform = 0.1 * torch.randn(16000 * 40, generator=torch.Generator().manual_seed(2))
    whole = teacher([waveform])[0]
    begin = 320 * 700  # mel frames at the cut see its other side: the first few frames differ
    later = teacher([waveform[begin : begin + 16000 * 25]])[0]
    error = (whole[750:1390] - later[50:690]).norm() / later[50:690].norm()
    assert float(error) < 0.2  # Whisper's loudest value sets the floor of each window's spectrum
    assert len(whole) == count_frames(len(waveform), HUBERT_CONV)


def test_recordings_fill_windows_in_order(whisper):
    teacher = make_teacher(whisper)
    fit = lambda *seconds: teacher.fit_together([16000 * length for length in seconds])  # noqa: E731
    assert fit(10, 10, 8)
    assert not fit(10, 10, 8, 3)
    assert fit(14.6, 14.6)  # the silence after each counts
    assert not fit(14.6, 14.61)
    assert fit(31)
    assert not fit(31, 1)
    with pytest.raises(UsageError, match="layers 1 to 3, found layer 4"):
        make_teacher(whisper, 4)


def test_layers_are_those_of_transformers(whisper):
    teacher = make_teacher(whisper, 2)
    waveform = make_click(16000 * 29, 100)
    mel = transformers.WhisperFeatureExtractor(feature_size=16)(
        waveform.numpy(), sampling_rate=16000, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = whisper.encoder(mel.input_features, output_hidden_states=True).hidden_states[2][0]
    ours = teacher([waveform])[0]
    assert torch.allclose(ours, theirs[1 : len(ours) + 1], atol=1e-5)


def make_wav2vec(**changes):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
             "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}  # fmt: skip
    return transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**{**small, **changes})).eval()


@pytest.fixture(scope="module")
def wav2vec():
    return make_wav2vec()


def test_layers_of_pre_norm_networks_are_before_the_final_norm_but_for_the_last():
    model = make_wav2vec(do_stable_layer_norm=True, feat_extract_norm="layer", num_hidden_layers=3)
    with torch.no_grad():
        model.encoder.layer_norm.weight.fill_(3.0)
        waveform = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
        theirs = model(waveform[None], output_hidden_states=True)
    for layer in range(4):
        (ours,) = WaveformTeacher(copy.deepcopy(model), layer, normalize=False)([waveform])
        assert torch.allclose(ours, (theirs.hidden_states[layer] if layer < 3 else theirs.last_hidden_state)[0])
    short = WaveformTeacher(copy.deepcopy(model), 1, normalize=False)
    assert len(short.model.encoder.layers) == 2
    assert short.digest == WaveformTeacher(copy.deepcopy(model), 2, normalize=False).digest
    assert short.digest != WaveformTeacher(copy.deepcopy(model), 1, normalize=True).digest


def test_frames_of_other_strides_are_put_to_huberts_by_time():
    """Eight convolutions make 25 frames a second, the first around sample 360: HuBERT's frames 0 and 1, 2 and 3."""
    model = make_wav2vec(conv_dim=[8] * 8, conv_kernel=[10, 3, 3, 3, 3, 2, 2, 2], conv_stride=[5, *[2] * 7])
    teacher = WaveformTeacher(model, 2, normalize=False)
    assert teacher.min_samples == 720
    waveform = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model(waveform[None]).last_hidden_state[0]
    (ours,) = teacher([waveform])
    assert (len(theirs), len(ours)) == (24, 49)
    assert torch.equal(ours, theirs[[frame // 2 for frame in range(48)] + [23]])


def test_networks_on_samples(wav2vec, tmp_path):
    waveform = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0)) + 0.05
    wav2vec.save_pretrained(tmp_path / "m")
    for normalize in (True, False):
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize)
        extractor.save_pretrained(tmp_path / "m")
        values = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_values
        with torch.no_grad():
            theirs = wav2vec(values, output_hidden_states=True).hidden_states
        for layer in range(3):
            (ours,) = load_teacher(tmp_path / "m", layer)([waveform])
            assert torch.allclose(ours, theirs[layer][0], atol=1e-5)
    assert not load_teacher(tmp_path / "m", 1).fit_together([400, 400])
    (tmp_path / "m" / "preprocessor_config.json").write_text(
        '{"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 8000}'
    )
    with pytest.raises(UsageError, match="takes audio at 8000 Hz"):
        load_teacher(tmp_path / "m", 1)


def test_a_teacher_without_its_weights_is_refused(whisper, tmp_path):
    whisper.save_pretrained(tmp_path / "w")
    assert isinstance(load_teacher(tmp_path / "w", 3), WhisperTeacher)
    weights = load_file(tmp_path / "w" / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "layers.1.fc1" not in key},
              tmp_path / "w" / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(UsageError, match=r"lacks weights of its encoder: encoder.layers.1.fc1.bias"):
        load_teacher(tmp_path / "w", 3)
    transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "b")
    with pytest.raises(UsageError, match="/b: models of type bert cannot teach; Whisper and encoders of waveforms"):
        load_teacher(tmp_path / "b", 1)
    (tmp_path / "w" / "config.json").write_text("{")
    with pytest.raises(UsageError, match="/w: cannot be loaded by transformers"):
        load_teacher(tmp_path / "w", 1)


def test_other_kinds_of_networks_are_refused(wav2vec):
    model = transformers.BertModel(
        transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    )
    with pytest.raises(UsageError, match="models of type bert cannot teach"):
        WaveformTeacher(model, 1, normalize=False)


def test_a_hubert_folder_is_told_from_others_whatever_device_it_runs_on(tmp_path):
    """Without weights ("meta") as with them: its digest is made of what was read."""
    from daisy.extraction.teacher_kinds import open_teacher

    transformers.HubertModel(
        transformers.HubertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(32,) * 7,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    sources = [open_teacher(tmp_path, 2, {}, device=device) for device in ("cpu", "meta")]
    assert sources[0].kind == "hubert folder"
    assert sources[0].identity == sources[1].identity
