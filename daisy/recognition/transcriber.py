"""Write the texts of many recordings to disk, and resume stopped runs with the journals of `daisy extract`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from daisy import _files, _locks
from daisy.audio import Channel, Recording
from daisy.errors import AudioError, DaisyError, UsageError
from daisy.extraction.feature_files import name_outputs
from daisy.extraction.index import settle_on_settings
from daisy.extraction.journal import merge, read_journal
from daisy.extraction.places import Folder
from daisy.extraction.run_files import refuse_others_files
from daisy.extraction.run_folder import RunFolder
from daisy.extraction.run_journals import INDEX_LOCK, TRANSCRIPT_FILES, is_begun, list_journals, read_subtitles
from daisy.extraction.shards import EVERYTHING, Shard, take_share
from daisy.models import CTCHeads
from daisy.recognition.recogniser import Recogniser
from daisy.recognition.recordings import BATCH_SEC, CONTEXT_SEC, Outcome, transcribe
from daisy.recognition.transcript_files import TranscriptReport, format_csv, format_json, format_srt
from daisy.recognition.transcript_rows import TranscriptRow, TranscriptSettings


class Transcriber:
    """Recognises recordings, and keeps the results in a folder if one is given.

    Args:
        recogniser: the recogniser to run.
        checkpoint: digest of its checkpoint (`daisy.checkpoints.digest`), which must be the same in a resumed run.
        decoder: settings of its decoder (`daisy.recognition.transcript_rows.describe_decoder`); empty: greedy.
        batch_sec: seconds of audio in a batch.
        window_sec: see `daisy.recognition.transcribe`.
        context_sec: likewise.
        channel: how files with several channels are used.

    Example:
        >>> import daisy, torch
        >>> from daisy import Backbone, BackboneConfig, Model
        >>> from daisy.models import CTCHeads, CTCHeadsConfig, Tokens
        >>> from daisy.recognition import Recogniser, Transcriber
        >>> backbone = Backbone(BackboneConfig(num_layers=2, width=32, ffn_width=64, num_heads=4))
        >>> tokens = Tokens.characters("abc")
        >>> exits = CTCHeads(CTCHeadsConfig(layers=(1, 2), width=32, num_tokens=len(tokens)))
        >>> model = Model(backbone=backbone, ctc=exits, tokens=tokens)
        >>> recordings = daisy.audio.find([str(daisy.checkpoints.format.ASSETS / "demo")])[:2]
        >>> report = Transcriber(Recogniser(model, "fixed", layer=1), checkpoint="").run(recordings)
        >>> [row.exit_layer for row in report.rows]
        [1, 1]
    """

    def __init__(
        self,
        recogniser: Recogniser,
        *,
        checkpoint: str,
        decoder: Mapping[str, Any] | None = None,
        batch_sec: float = BATCH_SEC,
        window_sec: float | None = None,
        context_sec: float = CONTEXT_SEC,
        channel: Channel = "mean",
    ):
        self.recogniser, self.batch_sec = recogniser, batch_sec
        encoder = recogniser.encoder
        self.settings = TranscriptSettings(
            checkpoint=checkpoint,
            policy=encoder.policy.to_config(),
            heads="ctc" if isinstance(encoder.heads, CTCHeads) else "units",
            exits=list(encoder.exits),
            decoder=dict(decoder or {}),
            window_sec=window_sec,
            context_sec=CONTEXT_SEC if window_sec is None else context_sec,
            precision=encoder.dtype,
            channel=channel,
        )

    def run(
        self,
        recordings: Sequence[Recording],
        out: str | Path | None = None,
        *,
        shard: tuple[int, int] | None = None,
        overwrite: bool = False,
        references: Mapping[str, str] | None = None,
        subtitles: bool = False,
        progress: Callable[[int], None] = lambda count: None,
    ) -> TranscriptReport:
        """Recognise the recordings that are not yet finished in the folder.

        Args:
            recordings: files to recognise, or channels of files. Those that cannot be read do not stop the run;
                they are in the report.
            out: folder for ``transcripts.json``, ``transcripts.csv`` and the journal from which a stopped run resumes;
                None: nothing is written.
            shard: index, from 0, and number of shares, for processes that write to one folder at the same time.
            overwrite: start again where the folder holds another run.
            references: spoken texts, by `Recording.label`.
            subtitles: also write an ``.srt`` for each recording.
            progress: called with the number of recordings just processed.

        Returns:
            The texts, in the recordings' order; with a folder, also those of earlier runs, by name.

        Raises:
            OutputError: where the folder cannot be written, holds a run with other settings or other subtitles, or
                is being written by another process.
            UsageError: on an invalid shard or window.
        """
        share = Shard(*shard) if shard is not None else EVERYTHING
        ours, others = take_share(recordings, share, self.settings.channel)
        if out is None:
            return self._run_unkept(ours, references or {}, progress)
        if overwrite and share.count > 1:
            raise UsageError("one shard cannot begin again: it would take away what others wrote", remedy="other_out")
        out = Path(out)
        failed: dict[str, DaisyError] = {}
        names = name_outputs([*ours, *others], "srt") if subtitles else {}
        if subtitles and not overwrite and not is_begun(out, share, self.settings):
            refuse_others_files(Folder(out), share, "", [names[recording.label] for recording in ours], out)
        with RunFolder(out, self.settings, share, overwrite=overwrite, row_type=TranscriptRow) as folder:
            folder.forget_failures(ours, others)
            unfinished = folder.list_unfinished(ours)
            progress(len(ours) - len(unfinished))
            for recording, outcome in self._transcribe(unfinished):
                if isinstance(outcome, TranscriptRow):
                    folder.add(outcome)
                else:
                    failed[recording.label] = outcome
                    folder.fail({recording.label: outcome.message})
                progress(1)
            rebuild_transcripts(out, references=references or {}, names=names)
            labels = {recording.label for recording in ours} if share.count > 1 else folder.rows.keys()
            rows = [row for row in folder.rows.values() if row.label in labels and isinstance(row, TranscriptRow)]
        return TranscriptReport(
            settings=self.settings,
            rows=sorted(rows, key=lambda row: row.sort_key),
            failed=failed,
            num_resumed=len(ours) - len(unfinished),
            num_changed=folder.num_changed,
            num_gone=folder.num_gone,
            references=references or {},
        )

    def _run_unkept(
        self, recordings: Sequence[Recording], references: Mapping[str, str], progress: Callable[[int], None]
    ) -> TranscriptReport:
        rows: dict[str, TranscriptRow] = {}
        failed: dict[str, DaisyError] = {}
        for recording, outcome in self._transcribe(recordings):
            if isinstance(outcome, TranscriptRow):
                rows[recording.label] = outcome
            else:
                failed[recording.label] = outcome
            progress(1)
        ordered = [rows[recording.label] for recording in recordings if recording.label in rows]
        return TranscriptReport(settings=self.settings, rows=ordered, failed=failed, references=references)

    def _transcribe(self, recordings: Sequence[Recording]) -> Iterator[Outcome]:
        settings = self.settings
        return transcribe(
            self.recogniser,
            recordings,
            self.batch_sec,
            window_sec=settings.window_sec,
            context_sec=settings.context_sec,
        )


def rebuild_transcripts(
    out: str | Path, *, references: Mapping[str, str] | None = None, names: Mapping[str, str] | None = None
) -> TranscriptReport:
    """Write ``transcripts.json`` and ``transcripts.csv`` anew from the journals of all shards in a folder.

    Args:
        out: the folder.
        references: spoken texts, by `Recording.label`.
        names: names of subtitle files below the folder, by `Recording.label`; finished ones are written if
            they are missing or differ.

    Returns:
        The report that the files contain.

    Raises:
        UsageError: where the folder holds no transcripts.
        OutputError: where a journal is damaged, or has other settings than the others, or a file cannot be written.
    """
    out = Path(out)
    if not out.is_dir() or not list_journals(out):
        raise UsageError(f"{out}: holds no journal of transcripts (journal.jsonl)")
    with _locks.hold(out / INDEX_LOCK):  # if two shards end at once, the later one reads the results of both
        journals = [read_journal(out / shard.journal, row_type=TranscriptRow) for shard in list_journals(out)]
        settings, journals = settle_on_settings(journals, TranscriptSettings)
        finished, failures = merge(journals)
        rows = [row for row in finished.values() if isinstance(row, TranscriptRow)]
        titled = {names[row.label]: row for row in rows if row.label in names} if names else {}
        report = TranscriptReport(
            settings=settings,
            rows=sorted(rows, key=lambda row: row.sort_key),
            failed={path: AudioError(failures[path].reason or "") for path in sorted(failures)},
            references=references or {},
            subtitles=sorted({*read_subtitles(out), *titled}),
        )
        _files.remove_leftovers([out / name for name in TRANSCRIPT_FILES])
        for name, text in zip(TRANSCRIPT_FILES, (format_json(report), format_csv(report)), strict=True):
            _files.write(out / name, text.encode(errors="surrogateescape"))
        for name, row in titled.items():
            _write_changed(out / name, format_srt(row.words).encode())
    return report


def _write_changed(path: Path, content: bytes) -> None:
    """Write a file unless it has this content already: rewriting thousands of files would each wait for the disk."""
    if not path.is_file() or path.read_bytes() != content:
        _files.write(path, content)
