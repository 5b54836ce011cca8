"""Extract units of many recordings to disk: like `daisy extract`, with units instead of features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from daisy.audio import Channel, Recording
from daisy.audio.manifests import format_manifest_name
from daisy.encoder import EarlyExitEncoder
from daisy.extraction import Extractor
from daisy.extraction.batch_encoder import BatchEncoder
from daisy.extraction.engines import Engine
from daisy.extraction.journal import Row, Settings
from daisy.extraction.tasks import MakeBatchEncoder
from daisy.runtime.exit_output import ExitOutput
from daisy.units.classifiers import UnitClassifier, to_text
from daisy.units.encoder import UnitEncoder, classify
from daisy.units.files import check_forms, format_text_name, rebuild_units
from daisy.units.rows import UnitRow, UnitSettings


class UnitExtractor(Extractor):
    """Extracts the units of recordings to a folder: to a journal, and in the forms that are asked for.

    A stopped run continues where it ended, shards write into one folder at once, and unreadable files are reported: see
    `daisy.extraction.Extractor`. Forms and deduplication may change from run to run: the journal has one unit for each
    frame, and finished recordings are not computed again.

    Args:
        units: encoder that runs.
        out: output folder.
        checkpoint: digest of the model's checkpoint (`daisy.checkpoints.digest`), which a continued run must share.
        forms: some of `daisy.units.files.FORMS`.
        deduplicated: write each run of one unit once, and how many frames it lasts.
        batch_sec: as in `Extractor`, like the following arguments.
        max_sec: likewise.
        window_sec: likewise.
        context_sec: likewise.
        channel: likewise.
        engine: likewise.

    Raises:
        UsageError: on an impossible setting or form.

    Example:
        >>> import daisy, daisy.audio, tempfile
        >>> from daisy.units import UnitEncoder, UnitExtractor
        >>> units = UnitEncoder(daisy.load("daisy-mini"), "fixed", layer=3)
        >>> recordings = daisy.audio.find([str(daisy.checkpoints.format.ASSETS / "demo")])[:2]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = UnitExtractor(units, folder, checkpoint="").run(recordings)
        >>> [len(row.list_units()) == int(50 * row.duration_sec - 0.25) for row in report.rows]
        [True, True]
    """

    row_type: ClassVar[type[Row]] = UnitRow

    def __init__(
        self,
        units: UnitEncoder,
        out: str | Path,
        *,
        checkpoint: str,
        forms: Sequence[str] = ("jsonl",),
        deduplicated: bool = False,
        batch_sec: float = 30.0,
        max_sec: float = 600.0,
        window_sec: float | None = None,
        context_sec: float = Settings.context_sec,
        channel: Channel = "mean",
        engine: Engine | None = None,
    ):
        check_forms(forms, channel)
        self.units, self.forms, self.deduplicated = units, tuple(forms), deduplicated
        super().__init__(
            units.encoder,
            out,
            checkpoint=checkpoint,
            batch_sec=batch_sec,
            max_sec=max_sec,
            window_sec=window_sec,
            context_sec=context_sec,
            channel=channel,
            engine=engine,
        )

    def name_outputs(self, recordings: Sequence[Recording]) -> dict[str, str]:
        """Return no names: recordings have no files of their own."""
        return {}

    def check_recording(self, recording: Recording, outputs: dict[str, str]) -> None:
        """Refuse a name that one of the requested forms cannot hold.

        Raises:
            AudioError: where a form cannot hold the name.
        """
        if "km" in self.forms:
            format_manifest_name(recording, str(recording.path))
        if "text" in self.forms:
            format_text_name(recording.label)

    def choose_batch_encoder(self) -> MakeBatchEncoder:
        """Choose the batch encoder that finds units."""
        return partial(UnitBatchEncoder, classifier=self.units.classifier)

    def write_index(self) -> None:
        """Write the requested forms from the journals of all shards."""
        rebuild_units(self.out, self.forms, deduplicated=self.deduplicated)

    def make_settings(self) -> UnitSettings:
        """Return the settings that determine the units, with the encoder's current policy."""
        config = self.encoder.backbone.config
        return UnitSettings(
            checkpoint=self.checkpoint,
            policy=self.encoder.policy.to_config(),
            layers=self.encoder.keep,
            scores=self.encoder.score_names,
            score_stride=self.encoder.score_stride,
            window_sec=self.window_sec,
            context_sec=self.context_sec,
            precision=self.encoder.dtype,
            channel=self.channel,
            source=self.units.classifier.source,
            num_units=self.units.num_units,
            units_per_sec=config.sample_rate / config.frame_hop,
            sample_rate=config.sample_rate,
        )


class UnitBatchEncoder(BatchEncoder):
    """Encodes batches of recordings and finds their units.

    Args:
        encoder: encoder that runs.
        out: output folder of the run.
        settings: settings of the run.
        batch_sec: seconds of audio in a batch of windows.
        classifier: classifier of the encoder's states.
    """

    def __init__(
        self,
        encoder: EarlyExitEncoder,
        out: Path,
        settings: Settings,
        batch_sec: float,
        *,
        classifier: UnitClassifier,
    ):
        super().__init__(encoder, out, settings, batch_sec)
        self.classifier = classifier

    def take(self, result: ExitOutput) -> Sequence[Tensor]:
        """Find the units of each utterance."""
        return classify(self.classifier, result)

    def finish(self, row: Row, kept: Tensor) -> UnitRow:
        """Put the units (T,) into the recording's row."""
        return UnitRow(**vars(row), units=to_text(kept))

    @contextmanager
    def gather(self, recording: Recording) -> Iterator[_UnitGathering]:
        """Collect the states of a long recording, of which only the units are kept."""
        yield _UnitGathering(self)


class _UnitGathering:
    """Units of the windows of a long recording."""

    def __init__(self, encoder: UnitBatchEncoder):
        self._encoder = encoder
        self._units: list[Tensor] = []

    def append(self, states: Tensor, layer: int) -> None:
        """Add the next (T, D) states, of some layer."""
        self._units.append(self._encoder.classifier.classify(layer, states).cpu())

    def finish(self, row: Row) -> UnitRow:
        """Put the units of all windows into the recording's row."""
        return self._encoder.finish(row, torch.cat(self._units))
