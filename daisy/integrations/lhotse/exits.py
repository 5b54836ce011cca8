"""Store exits as fields of cuts: each cut's exit layer, its predicted loss by layer, and its units."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lhotse import CutSet, Features
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.features.io import FeaturesWriter
from lhotse.utils import fastcopy
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from daisy.errors import AudioError, UsageError
from daisy.integrations.lhotse.extractor import DaisyFeatures, Encoding
from daisy.integrations.lhotse.resuming import begin_manifest, describe_settings, hold_lock


def add_exits(
    cuts: CutSet,
    extractor: DaisyFeatures,
    *,
    features: FeaturesWriter | None = None,
    units: FeaturesWriter | None = None,
    manifest_path: str | Path | None = None,
    batch_sec: float = 600.0,
    num_workers: int = 0,
    overwrite: bool = False,
) -> CutSet:
    """Encode cuts, and attach their exits as custom fields, which lhotse stores with the cuts.

    The fields are ``exit_layer``, a number; ``predicted_loss``, a list of nats at layers 1 to the exit layer, if the
    checkpoint has heads; and ``units``, which ``cut.load_units()`` reads as an array (T,), if a writer for
    them is given. Given a writer, states are stored in the same pass, as by ``cuts.compute_and_store_features_batch``.

    Args:
        cuts: cuts of recordings at the model's sample rate, with one channel each.
        extractor: extractor to run.
        features: writer of states, such as an open ``lhotse.NumpyFilesWriter``; None: they are not stored.
        units: writer of units, likewise.
        manifest_path: a JSONL file to which finished cuts are written; a stopped or killed run resumes
            there, with its original settings (``NAME.daisy.json`` beside it). None: cuts stay in memory.
        batch_sec: seconds of audio that are read ahead together; the extractor's own value is for encoding.
        num_workers: processes that read audio; 0: the current one.
        overwrite: start the file again.

    Returns:
        The cuts with their fields.

    Raises:
        UsageError: on mixed cuts and padding, which cannot hold fields, or another sample rate.
        AudioError: on several channels, or a cut that is shorter than one frame.
        OutputError: where the file has other settings, was written by something else, or is being written;
            or would be overwritten while the cuts are read from it.
    """
    with contextlib.ExitStack() as stack:
        if manifest_path is not None:
            stores = {"features": features is not None, "units": units is not None}
            stack.enter_context(hold_lock(Path(manifest_path)))
            settings = describe_settings(extractor) | stores
            begin_manifest(Path(manifest_path), cuts, settings, overwrite=overwrite)
        writer = stack.enter_context(CutSet.open_writer(manifest_path, overwrite=False))
        done = writer.ignore_ids
        if done:
            cuts = cuts.filter(lambda cut: cut.id not in done)
        for cut in encode_cuts(cuts, extractor, features, units, batch_sec=batch_sec, num_workers=num_workers):
            writer.write(cut, flush=True)
    return writer.open_manifest()


def encode_cuts(
    cuts: CutSet,
    extractor: DaisyFeatures,
    features: FeaturesWriter | None,
    units: FeaturesWriter | None,
    *,
    batch_sec: float,
    num_workers: int,
) -> Iterator[Cut]:
    """Encode cuts, and yield them with their fields, in their order; see `add_exits`."""
    loader = DataLoader(Waveforms(), batch_size=None, sampler=_make_batches(cuts, batch_sec), num_workers=num_workers)
    for batch, samples in loader:
        rate = batch[0].sampling_rate
        if any(cut.sampling_rate != rate for cut in batch):
            raise UsageError("the cuts have several sampling rates: cuts.resample makes them one")
        try:
            encodings = extractor.encode(samples, rate, units=units is not None)
        except AudioError:
            _find_fault(batch, samples, extractor)
            raise
        for cut, encoding in zip(batch, encodings, strict=True):
            yield _attach(cut, encoding, extractor, features, units)


def _find_fault(batch: list[Cut], samples: list[NDArray[Any]], extractor: DaisyFeatures) -> None:
    """Raise an error that names the cut, where a single one cannot be encoded."""
    for cut, waveform in zip(batch, samples, strict=True):
        try:
            extractor.check(waveform)
        except AudioError as error:
            raise AudioError(f"{cut.id}: {error.message}") from None


def _make_batches(cuts: CutSet, batch_sec: float) -> Iterator[list[Cut]]:
    """Group cuts in order; lhotse's samplers would split them where torch.distributed runs, and modify them."""
    batch: list[Cut] = []
    total = 0.0
    for cut in cuts:
        if batch and total + cut.duration > batch_sec:
            yield batch
            batch, total = [], 0.0
        batch.append(cut)
        total += cut.duration
    if batch:
        yield batch


class Waveforms(Dataset[tuple[list[Cut], list[NDArray[Any]]]]):
    """Reads the audio of cuts."""

    def __getitem__(self, cuts: list[Cut]) -> tuple[list[Cut], list[NDArray[Any]]]:
        return cuts, [cut.load_audio() for cut in cuts]


def _attach(
    cut: Cut,
    encoding: Encoding,
    extractor: DaisyFeatures,
    features: FeaturesWriter | None,
    units: FeaturesWriter | None,
) -> Cut:
    if not isinstance(cut, DataCut):
        raise UsageError(
            f"{cut.id}: a {type(cut).__name__} holds no fields of its own: cuts.save_audios stores it whole"
        )
    custom = dict(cut.custom or {})
    custom["exit_layer"] = encoding.exit_layer
    if encoding.predicted_loss:
        custom["predicted_loss"] = encoding.predicted_loss
    if units is not None and encoding.units is not None:
        custom["units"] = units.store_array(
            key=f"{cut.id}-units",
            value=encoding.units.int().numpy(),
            frame_shift=extractor.frame_shift,
            temporal_dim=0,
            start=cut.start,
        )
    if features is None:
        return fastcopy(cut, custom=custom)
    states = encoding.states.numpy()
    described = Features(
        type=extractor.name,
        num_frames=states.shape[0],
        num_features=states.shape[1],
        frame_shift=extractor.frame_shift,
        sampling_rate=cut.sampling_rate,
        start=cut.start,
        duration=cut.duration,
        storage_type=features.name,
        storage_path=str(features.storage_path or ""),  # memory writers have none
        storage_key=features.write(cut.id, states),
        recording_id=cut.recording_id,
        channels=cut.channel,
    )
    return fastcopy(cut, custom=custom, features=described)
