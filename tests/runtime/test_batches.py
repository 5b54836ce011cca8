"""Valid forms of a batch, and the messages for invalid ones."""

import dataclasses

import numpy
import pytest
import torch

from daisy import AudioError, EarlyExitEncoder, policies
from tests.conftest import POST_NORM, assert_same_output, spread_policy, tiny_model

LENGTHS = [5000, 16000, 720]


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(3)
    return [0.1 * torch.randn(length, generator=generator) for length in LENGTHS]


@pytest.fixture(scope="module")
def encoder(batch):
    model = tiny_model(POST_NORM)
    return EarlyExitEncoder(model.backbone, model.heads, spread_policy(model, batch * 3))


@pytest.fixture(scope="module")
def expected(encoder, batch):
    return encoder(batch)


def as_padded(batch):
    """A batch with loud noise where nothing is to be read, and its mask."""
    padded = torch.full((len(batch), max(LENGTHS)), 0.7)
    mask = torch.zeros(padded.shape, dtype=torch.bool)
    for row, waveform in enumerate(batch):
        padded[row, : len(waveform)] = waveform
        mask[row, : len(waveform)] = True
    return padded, mask


FORMS = {
    "tensors": lambda batch: (batch,),
    "a tuple": lambda batch: (tuple(batch),),
    "numpy arrays": lambda batch: ([waveform.numpy() for waveform in batch],),
    "one channel each": lambda batch: ([waveform[None] for waveform in batch],),
    "numpy, one channel each": lambda batch: ([waveform[None].numpy() for waveform in batch],),
    "read-only numpy arrays": lambda batch: ([numpy.frombuffer(w.numpy().tobytes(), "float32") for w in batch],),
    "float64": lambda batch: ([waveform.double() for waveform in batch],),
    "numpy float64": lambda batch: ([waveform.numpy().astype("float64") for waveform in batch],),
    "a mixture": lambda batch: ([batch[0].numpy(), batch[1][None], batch[2].double()],),
    "padded": lambda batch: (as_padded(batch)[0], torch.tensor(LENGTHS)),
    "padded, numbers": lambda batch: (as_padded(batch)[0], LENGTHS),
    "padded numpy": lambda batch: (as_padded(batch)[0].numpy(), numpy.array(LENGTHS)),
    "wide stride": lambda batch: ([torch.stack([waveform, waveform], 1)[:, 0] for waveform in batch],),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_batch(encoder, batch, expected, form):
    assert len(set(expected.exit_layer.tolist())) > 1
    assert_same_output(encoder(*FORMS[form](batch)), expected, tolerance=1e-4 if "float64" in form else 0)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_a_mask_in_place_of_lengths(encoder, batch, expected, kind):
    padded, mask = as_padded(batch)
    assert_same_output(encoder(padded, mask=mask.to(kind)), expected)
    assert_same_output(encoder(padded.numpy(), mask=mask.to(kind).numpy()), expected)


@pytest.mark.parametrize("form", [lambda w: w, lambda w: w.numpy(), lambda w: w[None], lambda w: [w[None].numpy()]])
def test_forms_of_one_waveform(encoder, batch, form):
    alone = encoder(form(batch[1]))
    assert_same_output(alone, encoder([batch[1]]))
    assert len(alone) == 1


def test_what_is_given_stays_as_it_was(encoder, batch):
    before = [waveform.clone() for waveform in batch]
    padded, mask = as_padded(batch)
    padded_before = padded.clone()
    encoder(batch), encoder(padded, mask=mask)
    assert all(map(torch.equal, batch, before))
    assert torch.equal(padded, padded_before)


def test_bfloat16_samples_are_taken_as_they_are(encoder, batch):
    rounded = [waveform.bfloat16() for waveform in batch]
    assert_same_output(encoder(rounded), encoder([waveform.float() for waveform in rounded]))


two = torch.zeros(2, 800)
gap = torch.ones(2, 800, dtype=torch.bool)
gap[1, 500] = False
on_the_left = torch.ones(2, 800, dtype=torch.bool)
on_the_left[1, :100] = False


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {}, "an empty batch: give at least one utterance"),
        (torch.zeros(0, 800), {"num_samples": []}, "an empty batch: give at least one utterance"),
        ([torch.zeros(2, 800)], {}, "utterance 0 must be one-dimensional, or (1, samples), found (2, 800): "
         "average its channels, or give one"),
        ([torch.zeros(800), torch.zeros(1, 1, 800)], {}, "utterance 1 must be one-dimensional, or (1, samples), "
         "found (1, 1, 800)"),
        ([torch.tensor(0.5)], {}, "utterance 0 must be one-dimensional, or (1, samples), found ()"),
        ([[0.0] * 800], {}, "utterance 0 must be a tensor or a numpy array, found list"),
        (["a.wav"], {}, "utterance 0 must be a tensor or a numpy array, found str"),
        ([torch.zeros(800), None], {}, "utterance 1 must be a tensor or a numpy array, found NoneType"),
        (torch.zeros(1, 2, 800), {}, "a padded batch must be (utterances, samples), and one waveform (samples,), "
         "found (1, 2, 800)"),
        (torch.zeros(800), {"num_samples": [800]}, "a padded batch must be (utterances, samples), and one waveform "
         "(samples,), found (800,)"),
        (two, {}, "a padded batch needs num_samples, the length of each utterance, or a mask"),
        (two, {"num_samples": [800, 801]}, "num_samples [800, 801] does not fit a batch of (2, 800)"),
        (two, {"num_samples": [800]}, "num_samples [800] does not fit a batch of (2, 800)"),
        (two, {"num_samples": [800, -1]}, "num_samples [800, -1] does not fit a batch of (2, 800)"),
        (two, {"num_samples": [800, 800], "mask": gap}, "give either num_samples or a mask, not both"),
        (two, {"mask": gap[:, :799]}, "a mask of (2, 799) does not fit a batch of (2, 800)"),
        (two, {"mask": gap}, "a mask must be True from each row's first sample on: padding on the right, no gaps"),
        (two, {"mask": on_the_left}, "a mask must be True from each row's first sample on: padding on the right, "
         "no gaps"),
        ([torch.zeros(800)], {"num_samples": [800]}, "lengths and masks go with a padded batch; the waveforms of a "
         "list have their own"),
        ([torch.zeros(800)], {"mask": gap[:1]}, "lengths and masks go with a padded batch; the waveforms of a list "
         "have their own"),
        ([torch.zeros(800, dtype=torch.int16)], {}, "waveforms must be floating point, full scale 1.0, found "
         "torch.int16"),
        (numpy.zeros(800, "int16"), {}, "waveforms must be floating point, full scale 1.0, found torch.int16"),
        ([numpy.zeros(800, "uint16")], {}, "waveforms must be floating point, full scale 1.0, found"),
        ([torch.zeros(400), torch.zeros(399)], {}, "utterance 1 has 399 samples; one frame needs 400"),
        (two, {"num_samples": [800, 399]}, "utterance 1 has 399 samples; one frame needs 400"),
        (torch.zeros(0), {}, "utterance 0 has 0 samples; one frame needs 400"),
        ([torch.full((800,), torch.nan)], {}, "utterance 0 holds samples that are NaN or infinite"),
        (numpy.full(800, numpy.inf), {}, "utterance 0 holds samples that are NaN or infinite"),
    ],
)  # fmt: skip
def test_what_is_no_batch_is_refused(encoder, given, options, message):
    with pytest.raises(AudioError) as error:
        encoder(given, **options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_after_a_refusal_the_encoder_goes_on(encoder, batch, expected):
    with pytest.raises(AudioError):
        encoder([batch[0], torch.zeros(399)])
    assert_same_output(encoder(batch), expected)


def test_a_frame_is_as_long_as_the_backbones_convolutions_say():
    short = dataclasses.replace(POST_NORM, conv_layers=((16, 10, 5), (16, 3, 2)))
    encoder = EarlyExitEncoder(tiny_model(short).backbone, None, policies.Never())
    assert encoder(torch.zeros(20)).num_frames.tolist() == [1]
    with pytest.raises(AudioError, match="utterance 0 has 19 samples; one frame needs 20"):
        encoder(torch.zeros(19))


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (None, {}),
        (5, {}),
        (two, {"num_samples": 800}),
        (two, {"num_samples": [0.5, 1.0]}),  # shares of the longest, as some toolkits give
        (two, {"num_samples": torch.tensor([[800], [800]])}),
        (two, {"num_samples": ["800", "800"]}),
        (two, {"mask": "all"}),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(encoder, given, options):
    with pytest.raises(AudioError):
        encoder(given, **options)


def test_samples_beyond_float32_are_refused(encoder):
    with pytest.raises(AudioError, match="utterance 0 holds samples that are NaN or infinite"):
        encoder(torch.full((800,), 1e300, dtype=torch.float64))


def test_arrays_in_another_machines_byte_order_are_read(encoder, batch):
    waveform = batch[0].numpy()
    assert_same_output(encoder(waveform.astype(">f4")), encoder(waveform))
