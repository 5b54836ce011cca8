"""Extract features of many recordings to disk: batched by length, written atomically, resumable."""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import ClassVar, Literal

from daisy import audio
from daisy.audio import Channel, Recording
from daisy.audio.recordings import drop_path
from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError, DaisyError, OutputError, Remedy, UsageError
from daisy.extraction import windows
from daisy.extraction.batch_encoder import Batch, BatchEncoder, Outcome
from daisy.extraction.engines import Engine, LocalEngine
from daisy.extraction.feature_files import check_name, name_outputs
from daisy.extraction.index import ExtractionReport, rebuild_index
from daisy.extraction.journal import STORED_DTYPES, Row, Settings
from daisy.extraction.places import Storage, open_place
from daisy.extraction.run_files import number_shards, refuse_others_files, remove_leftovers
from daisy.extraction.run_folder import RunFolder
from daisy.extraction.run_journals import is_begun
from daisy.extraction.shard_files import check_kind, name_member
from daisy.extraction.shards import EVERYTHING, Shard, take_share
from daisy.extraction.tasks import MakeBatchEncoder, Task, TaskEncoder, fill_shards


class Extractor:
    """Write one feature file per recording into a folder, then ``index.json`` and ``index.csv``.

    Args:
        encoder: encoder; its policy decides the exits, its ``keep`` what is written.
        out: folder; each file has the recording's name with the format's ending.
        checkpoint: digest of the encoder's checkpoint (`daisy.checkpoints.digest`), which must be the same to resume a
            run.
        format: format of the files.
        dtype: data type of the states on disk.
        batch_sec: seconds of audio in a batch. On CPUs small batches are the fastest.
        max_sec: recordings longer than this are rejected unless windows are used: attention's cost grows with the
            square of the length.
        window_sec: recordings longer than this run in windows of this many seconds, see `daisy.extraction.windows`;
            only the exit layer's states are kept.
        context_sec: seconds of context on either side of each window, computed and dropped.
        channel: channel to use of multichannel files: their "mean", one, counted from 0, or "all", each of which is
            written to a file of its own, ``call.0.safetensors`` and so on.
        engine: engine that runs the encoder; None: this process. For a cluster use
            `daisy.distributed.extraction.RayEngine`.
        shards: kind of shard files to write instead of a file for each recording: "tar", "parquet" or "safetensors";
            see `daisy.extraction.shard_files`.
        shard_mb: approximate megabytes (10 ** 6 bytes) of states in a shard file.
        store: URL of storage for the files and the index, such as ``s3://bucket/run``, that fsspec can reach; the
            folder then has the journals, which list what is finished, and a copy of the index.

    Raises:
        UsageError: if a setting is impossible.

    Example:
        >>> import daisy, daisy.audio, tempfile
        >>> from daisy.extraction import Extractor
        >>> encoder = daisy.load("daisy-mini").encoder("fixed", layer=3, keep="last")
        >>> digest = daisy.checkpoints.digest("daisy-mini")
        >>> recordings = daisy.audio.find([str(daisy.checkpoints.format.ASSETS / "demo")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = Extractor(encoder, folder, checkpoint=digest).run(recordings[:2])
        >>> len(report.rows), report.totals()["mean_exit_layer"]
        (2, 3.0)
    """

    row_type: ClassVar[type[Row]] = Row

    def __init__(
        self,
        encoder: EarlyExitEncoder,
        out: str | Path,
        *,
        checkpoint: str,
        format: Literal["safetensors", "npy"] = "safetensors",
        dtype: Literal["float32", "float16"] = "float32",
        batch_sec: float = 30.0,
        max_sec: float = 600.0,
        window_sec: float | None = None,
        context_sec: float = Settings.context_sec,
        channel: Channel = "mean",
        engine: Engine | None = None,
        shards: Literal["tar", "parquet", "safetensors"] | None = None,
        shard_mb: float = 256.0,
        store: str = "",
    ):
        _check_seconds(batch_sec, max_sec)
        if shards is not None:
            check_kind(shards)
        if not 0 < shard_mb < math.inf:
            raise UsageError(f"shard_mb must be above 0 and finite, found {shard_mb}")
        if window_sec is not None:
            if encoder.keep != "last":
                raise UsageError("windows leave at layers of their own: they go with layers last, not all")
            windows.to_frames(window_sec, context_sec, encoder.backbone.config)
        self.encoder, self.out = encoder, Path(out)
        self.batch_sec, self.max_sec, self.window_sec = batch_sec, max_sec, window_sec
        self.checkpoint, self.format, self.dtype = checkpoint, format, dtype
        self.context_sec = Settings.context_sec if window_sec is None else context_sec
        self.channel = channel
        self.engine = engine or LocalEngine()
        self.shards, self.shard_mb, self.store = shards or "", shard_mb, store
        self.settings = self.make_settings()
        self.failed: dict[str, DaisyError] = {}

    def run(
        self,
        recordings: Sequence[Recording],
        *,
        shard: tuple[int, int] | None = None,
        overwrite: bool = False,
        progress: Callable[[int], None] = lambda count: None,
        watch: Callable[[Row], None] = lambda row: None,
    ) -> ExtractionReport:
        """Extract what is not yet finished by this or earlier runs in the same folder.

        Recordings that cannot be read, or whose features cannot be stored, do not stop the run; they are listed in the
        report, and the next run tries them again.

        Args:
            recordings: recordings to encode.
            shard: index, from 0, and number of shares of the recordings, for processes that write into one folder at
                the same time, see `Shard`. Each process is given all recordings, and takes its own share.
            overwrite: start over if the folder holds another run, or files that belong to no run.
            progress: called with the number of the shard's recordings just processed.
            watch: called with the row of each recording just finished.

        Raises:
            OutputError: if the folder cannot be written, holds a run with other settings, is being written by another
                process, or holds files that this run would write and that no journal lists.
            UsageError: if two recordings would have the same output file, or the shard is impossible.
        """
        share = Shard(*shard) if shard is not None else EVERYTHING
        if overwrite and share.count > 1:
            raise UsageError(
                "one shard cannot begin again: it would take away what the others have written", remedy="other_out"
            )
        settings = self.settings = self.make_settings()
        ours, others = take_share(recordings, share, self.channel)
        outputs = self.name_outputs([*ours, *others])
        if self.shards == "tar":
            outputs = {label: name_member(output) for label, output in outputs.items()}
        self.failed = {}
        place = open_place(self.out, self.store)
        if isinstance(place, Storage):
            place.check_writable()
        if not overwrite and not is_begun(self.out, share, settings):
            refuse_others_files(place, share, self.shards, _choose(outputs, ours), self.out)
        with contextlib.ExitStack() as stack:
            if overwrite and ours:
                stack.enter_context(self.engine.open(self.encoder))  # before the earlier run is deleted
            folder = stack.enter_context(
                RunFolder(self.out, settings, share, overwrite=overwrite, row_type=self.row_type, place=place)
            )
            folder.check_outputs(outputs)
            folder.forget_failures(ours, others)
            unfinished = folder.list_unfinished(ours)
            remove_leftovers(folder, self.shards, _choose(outputs, unfinished))
            tasks = self._make_tasks(unfinished, folder, outputs)
            progress(len(ours) - len(unfinished) + len(self.failed))
            self._encode(tasks, folder, progress, watch)
            if self.engine.has_workers:
                remove_leftovers(folder, self.shards, _choose(outputs, unfinished))
            self.write_index()
        labels = {one.label for one in ours} if share.count > 1 else folder.rows.keys()
        return ExtractionReport(
            settings=settings,
            rows=folder.rows.select(folder.rows.sort(label for label in labels if label in folder.rows)),
            failed=self.failed,
            num_resumed=len(ours) - len(unfinished),
            num_changed=folder.num_changed,
            num_gone=folder.num_gone,
        )

    def _make_tasks(
        self, unfinished: Sequence[Recording], folder: RunFolder, outputs: dict[str, str]
    ) -> Iterator[Task]:
        """Group readable recordings by length, longest first except in shard files; note in the folder the others."""
        pending: list[Recording] = []
        lengths = array("q")
        refused: dict[Recording, AudioError | OutputError] = {}
        for recording in unfinished:
            try:
                self.check_recording(recording, outputs)
                lengths.append(self._read_length(recording))
                pending.append(recording)
            except (AudioError, OutputError) as error:
                refused[recording] = error
        self._fail(folder, refused)
        groups: Iterable[list[int]] = audio.batch_by_length(lengths, self._max_batch_samples())
        if self.shards:
            groups = _shuffle(groups)
        batches = (
            Batch(
                recordings=[pending[i] for i in indices],
                outputs=[outputs.get(pending[i].label, "") for i in indices],
                num_samples=lengths[indices[0]],
            )
            for indices in groups
        )
        if self.shards:
            return fill_shards(batches, self._max_shard_samples(), number_shards(folder, self.shards))
        return (Task(batches=[batch]) for batch in batches)

    def _encode(
        self,
        tasks: Iterator[Task],
        folder: RunFolder,
        progress: Callable[[int], None],
        watch: Callable[[Row], None],
    ) -> None:
        """Let the engine run the tasks, and note their outcomes in the folder."""
        task_encoder = TaskEncoder(
            self.encoder, folder.place, self.settings, self.batch_sec, self.choose_batch_encoder()
        )
        with contextlib.closing(self.engine.encode(task_encoder, tasks, folder.journal)) as running:
            for outcomes in running:  # closed even if stopped
                # Outcomes that come one by one are noted one by one; those finished together are noted with one flush
                # to disk.
                parts = [outcomes] if isinstance(outcomes, list) else ([outcome] for outcome in outcomes)
                progress(sum(self._note(part, folder, watch) for part in parts))

    def _note(self, outcomes: Sequence[Outcome], folder: RunFolder, watch: Callable[[Row], None]) -> int:
        """Note recordings' outcomes in the folder; return their number."""
        if rows := [outcome for _, outcome in outcomes if isinstance(outcome, Row)]:
            folder.add(*rows)
            for row in rows:
                watch(row)
        self._fail(folder, {recording: outcome for recording, outcome in outcomes if not isinstance(outcome, Row)})
        return len(outcomes)

    def _fail(self, folder: RunFolder, errors: Mapping[Recording, AudioError | OutputError]) -> None:
        """Note in the folder why recordings failed, with one flush to disk."""
        reasons = {recording.label: drop_path(recording, error) for recording, error in errors.items()}
        self.failed.update(reasons)
        folder.fail({label: reason.message for label, reason in reasons.items()})

    def check_recording(self, recording: Recording, outputs: dict[str, str]) -> None:
        """Reject a recording whose result could not be written.

        Raises:
            AudioError, OutputError: if so.
        """
        if recording.label in outputs:
            check_name(self.out / outputs[recording.label])

    def name_outputs(self, recordings: Sequence[Recording]) -> dict[str, str]:
        """Return each recording's file by `Recording.label`; empty if recordings have no files."""
        return name_outputs(recordings, self.settings.format, as_text=bool(self.shards))

    def choose_batch_encoder(self) -> MakeBatchEncoder:
        """Return the function that creates the batch encoder."""
        return BatchEncoder

    def write_index(self) -> None:
        """Write the files that are made from all journals of the folder."""
        rebuild_index(self.out)

    def make_settings(self) -> Settings:
        """Return the settings that decide the results, with the encoder's current policy."""
        return Settings(
            checkpoint=self.checkpoint,
            policy=self.encoder.policy.to_config(),
            layers=self.encoder.keep,
            scores=self.encoder.score_names,
            score_stride=self.encoder.score_stride,
            format=self.format,
            dtype=self.dtype,
            window_sec=self.window_sec,
            context_sec=self.context_sec,
            precision=self.encoder.dtype,
            channel=self.channel,
            shards=self.shards,
            store=self.store,
        )

    def _read_length(self, recording: Recording) -> int:
        rate = self.encoder.backbone.config.sample_rate
        length = audio.measure_recording(recording, rate)
        if self.window_sec is None and length > self.max_sec * rate:
            remedy: Remedy = "window" if self.encoder.keep == "last" else "max_sec"
            raise AudioError(f"lasts {length / rate:.0f} s, more than {self.max_sec:.0f} s", remedy=remedy)
        return length

    def _max_batch_samples(self) -> int:
        """Return the samples of a batch; recordings that need windows have batches of their own."""
        seconds = min(self.batch_sec, self.window_sec or self.batch_sec)
        return int(seconds * self.encoder.backbone.config.sample_rate)

    def _max_shard_samples(self) -> int:
        """Return the samples of a shard, by the bytes of their states; with all layers, as if all were executed."""
        config = self.encoder.backbone.config
        layers = 1 if self.encoder.keep == "last" else config.num_layers + 1
        frame_bytes = layers * config.width * STORED_DTYPES[self.dtype].itemsize
        return max(int(self.shard_mb * 1e6 / frame_bytes * config.frame_hop), 1)


def _choose(outputs: Mapping[str, str], recordings: Iterable[Recording]) -> Iterator[str]:
    """Yield the files of some recordings, for those that have one."""
    return (outputs[recording.label] for recording in recordings if recording.label in outputs)


def _shuffle(batches: Iterable[list[int]]) -> list[list[int]]:
    """Shuffle batches, always in the same way, so that each shard file has recordings of all lengths."""
    shuffled = list(batches)
    Random(0).shuffle(shuffled)
    return shuffled


def _check_seconds(batch_sec: float, max_sec: float) -> None:
    if not batch_sec > 0 or not max_sec > 0:
        raise UsageError(f"batch_sec and max_sec must be above 0 s, found {batch_sec} and {max_sec}")
    if math.isinf(batch_sec):
        raise UsageError("batch_sec must be a number of seconds, found inf")
