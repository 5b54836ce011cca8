"""daisy transcribe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daisy.cli.console import (
    explain,
    name_same_command,
    report_failures,
    say,
    say_table,
    warn,
    warn_of_rest,
    warn_of_sources,
)
from daisy.cli.options import (
    BatchSec,
    ChannelText,
    ComputeDtype,
    ContextSec,
    DeadlineMacs,
    DeadlineMs,
    Device,
    Inputs,
    Overwrite,
    PolicySettings,
    Root,
    ShardText,
    check_deadlines,
    check_device,
    limit_cost,
    note_lost_guarantee,
    parse_channel,
    parse_settings,
    parse_shard,
    say_share,
)
from daisy.cli.progress import track
from daisy.cli.texts import Reference
from daisy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from daisy.audio import Recording
    from daisy.checkpoints import Model
    from daisy.extraction import Shard
    from daisy.recognition import AttentionSearch, BeamSearch, Transcriber, TranscriptReport
    from daisy.recognition.error_rates import ErrorRates

MAX_TABLE_ROWS = 40
"""Number of recordings above which, with --out, only the totals are printed."""

Checkpoint = Annotated[str, typer.Option("--checkpoint", "-c", help="A daisy checkpoint of a recogniser.")]
OutFolder = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for transcripts.json and transcripts.csv; stopped runs resume."),
]
Format = Annotated[
    Literal["table", "json", "csv", "srt"],
    typer.Option(help="Format of the output; with --out, srt writes subtitles of each recording and prints a table."),
]
PolicyName = Annotated[
    str,
    typer.Option("--policy", "-p", help="A policy's name, or a daisy calibrate file; default: the checkpoint's own."),
]
Heads = Annotated[
    Literal["ctc", "units"],
    typer.Option(help="Whose scores the policy reads: of the exits that write the text, or of DAISY's own heads."),
]
DecoderName = Annotated[
    Literal["ctc", "attention"],
    typer.Option("--decoder", help="Read texts from the CTC exits, or from attention decoders at them."),
]
Beam = Annotated[int, typer.Option(min=0, help="Hypotheses that a beam search keeps; 0 decodes greedily.")]
Lexicon = Annotated[Path | None, typer.Option(help="With --beam: a file of words and their spellings.")]
LanguageModel = Annotated[Path | None, typer.Option(help="With --beam: a KenLM model.")]
LanguageWeight = Annotated[float, typer.Option(help="With --language-model: factor on its scores.")]
WordScore = Annotated[float, typer.Option(help="With --lexicon: score added for each word.")]
WindowSec = Annotated[
    float | None,
    typer.Option(
        "--window",
        help="Run longer recordings in windows of this many seconds and join their text; 0: never. Default: 60, or "
        "never with attention decoders.",
    ),
]
DEFAULT_WINDOW_SEC = 60.0


def command(
    inputs: Inputs,
    checkpoint: Checkpoint,
    policy: PolicyName = "",
    set: PolicySettings = None,
    heads: Heads = "ctc",
    deadline_ms: DeadlineMs = None,
    deadline_macs: DeadlineMacs = None,
    out: OutFolder = None,
    format: Format = "table",
    reference: Reference = None,
    root: Root = Path("."),
    decoder: DecoderName = "ctc",
    beam: Beam = 0,
    lexicon: Lexicon = None,
    language_model: LanguageModel = None,
    language_weight: LanguageWeight = 2.0,
    word_score: WordScore = 0.0,
    batch_sec: BatchSec = 30.0,
    window: WindowSec = None,
    context: ContextSec = None,
    channel: ChannelText = "mean",
    precision: ComputeDtype = "float32",
    device: Device = "cpu",
    shard: ShardText = "",
    overwrite: Overwrite = False,
) -> None:
    """Recognise speech, each recording at its own exit.

    Prints text, exit layer and confidence; JSON also has the words' times. With --out a stopped run resumes where it
    ended, and --shard I/N divides the work as in daisy extract. With --reference, also prints word and character error
    rates, over all and by exit layer; case counts, unless the recogniser's characters have only one. Exit status 1:
    some recordings could not be read; 2: nothing was done.
    """
    from daisy import audio, checkpoints
    from daisy.recognition import Recogniser, Transcriber

    if out is None and (shard or overwrite):
        raise UsageError("--shard and --overwrite are of a folder: give --out too")
    check_deadlines(deadline_ms, deadline_macs)
    share, heard = parse_shard(shard), parse_channel(channel)
    findings = audio.search(inputs)
    model = checkpoints.load(checkpoint, device=check_device(device))
    exits = model.exit_heads("ctc")  # raises an error if there are none
    assert exits is not None
    recordings = audio.take_channels(findings.recordings, heard)
    if format == "srt" and out is None and len(recordings) > 1:
        raise UsageError(f"subtitles of {len(recordings)} recordings are files of their own: give --out FOLDER")
    references = _read_references(model, reference, recordings, root)
    decode, described = _make_decoder(model, decoder, beam, lexicon, language_model, language_weight, word_score)
    note_lost_guarantee(
        policy,
        milliseconds=deadline_ms,
        macs=deadline_macs,
        window_sec=window,
        precision=precision,
        fewer_exits=heads == "units" and len(exits.config.layers) < model.backbone.config.num_layers,
        search="--decoder attention" if decoder == "attention" else f"--beam {beam}" if beam else "",
    )
    window_sec = (0.0 if decoder == "attention" else DEFAULT_WINDOW_SEC) if window is None else window
    settings: dict[str, Any] = {**parse_settings(set or [])}
    recogniser = Recogniser(model, policy or None, heads=heads, decode=decode, dtype=precision, **settings)
    begun_in = None if overwrite else out
    limit_cost(recogniser.encoder, milliseconds=deadline_ms, macs=deadline_macs, begun_in=begun_in)
    transcriber = Transcriber(
        recogniser,
        checkpoint=checkpoints.digest(checkpoint),
        decoder=described,
        batch_sec=batch_sec,
        window_sec=window_sec or None,
        **({} if context is None else {"context_sec": context}),
        channel=heard,
    )
    report = _run(
        transcriber,
        recordings,
        out,
        share=share,
        overwrite=overwrite,
        references=references,
        subtitles=format == "srt",
    )
    if share.count > 1:
        say_share(share, len(report.rows) + len(report.failed), findings.recordings, heard)
    written = out is not None and format == "srt"
    _say_report(report, "table" if written else format, limit=None if out is None else MAX_TABLE_ROWS)
    if window is None and any(row.window_exits for row in report.rows):
        note_lost_guarantee(policy, window_sec=window_sec)
    warn_of_sources(report.num_changed, report.num_gone)
    for row in report.rows:
        if row.silent:
            warn(f"note: {row.label}: digital silence; its exit layer means nothing")
    if reference is not None and (missing := sum(row.label not in references for row in report.rows)):
        warn(f"note: {reference} has no text for {missing} of {len(report.rows)} recordings: rates are of the others")
    warn_of_rest(findings)
    report_failures([f"{label}: {explain(error)}" for label, error in report.failed.items()], len(report.rows))


def _read_references(
    model: Model, reference: Path | None, recordings: Sequence[Recording], root: Path
) -> dict[str, str]:
    """Read the transcript of each recording, in the tokens' case."""
    from daisy.audio.references import read_references
    from daisy.recognition import count_errors

    if reference is None:
        return {}
    count_errors("a", "a")  # fails if jiwer is missing, before the long run
    texts = read_references(reference, recordings, root)
    tokens = model.tokens
    assert tokens is not None
    return {one.label: tokens.fold(text) for one, text in zip(recordings, texts, strict=True) if text is not None}


def _make_decoder(
    model: Model,
    decoder: str,
    beam: int,
    lexicon: Path | None,
    language_model: Path | None,
    language_weight: float,
    word_score: float,
) -> tuple[AttentionSearch | BeamSearch | None, dict[str, Any]]:
    """Create the search that the options ask for, and return it with its settings; None and {}: greedy decoding."""
    from daisy.recognition import AttentionSearch, BeamSearch
    from daisy.recognition.transcript_rows import describe_decoder

    if decoder == "attention":
        if lexicon or language_model:
            raise UsageError("--lexicon and --language-model are of CTC's texts, not of --decoder attention")
        beam_size = max(beam, 1)
        return AttentionSearch(model, beam_size), describe_decoder(beam_size=beam_size, attention=True)
    if not beam:
        if lexicon or language_model:
            raise UsageError("--lexicon and --language-model are of a beam search: give --beam too")
        return None, {}
    assert model.tokens is not None
    search = BeamSearch(
        model.tokens,
        beam_size=beam,
        lexicon=lexicon,
        language_model=language_model,
        language_weight=language_weight,
        word_score=word_score,
    )
    return search, describe_decoder(
        beam_size=beam,
        lexicon=lexicon,
        language_model=language_model,
        language_weight=language_weight,
        word_score=word_score,
    )


def _run(
    transcriber: Transcriber,
    recordings: Sequence[Recording],
    out: Path | None,
    *,
    share: Shard,
    overwrite: bool,
    references: Mapping[str, str],
    subtitles: bool,
) -> TranscriptReport:
    """Transcribe with a progress display; Ctrl-C prints one line and exits with status 130."""
    try:
        with track("transcribing", sum(share.takes(recording) for recording in recordings)) as advance:
            return transcriber.run(
                recordings,
                out,
                shard=(share.index, share.count),
                overwrite=overwrite,
                references=references,
                subtitles=subtitles,
                progress=advance,
            )
    except KeyboardInterrupt:
        if out is None:
            warn("stopped: nothing is kept; with --out FOLDER the same command would go on")
        else:
            warn(f"stopped: what is finished is kept, and {name_same_command(overwrite)} goes on from there")
        raise typer.Exit(130) from None


def _say_report(report: TranscriptReport, format: str, limit: int | None) -> None:
    """Print the texts in a format; a table has totals and error rates, and texts of at most ``limit`` recordings."""
    from daisy.recognition.transcript_files import format_csv, format_json, format_srt

    if format == "json":
        say(format_json(report).rstrip("\n"))
    elif format == "csv":
        say(format_csv(report).rstrip("\n"))
    elif format == "srt":
        for row in report.rows:
            say(format_srt(row.words).rstrip("\n"))
    elif report.rows:
        if limit is None or len(report.rows) <= limit:
            _say_transcripts(report)
        _say_totals(report)


def _say_transcripts(report: TranscriptReport) -> None:
    """Print each recording's exit layer, confidence and text."""
    from rich.table import Table

    table = Table("recording", "exit layer", "confidence", "text", box=None, pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    for row in report.rows:
        exit_layer = f"{row.mean_exit_layer:g} of {row.num_layers}"
        if row.window_exits:
            exit_layer = f"{row.mean_exit_layer:.1f} of {row.num_layers} ({len(row.window_exits)} windows)"
        table.add_row(row.label, exit_layer, f"{row.confidence:.3f}", row.text)
    say_table(table)


def _say_totals(report: TranscriptReport) -> None:
    """Print the mean exit layer, the time, and error rates if there are any."""
    totals = report.totals()
    say(
        f"{totals['num_recordings']} recordings, {totals['audio_sec']:.1f} s of audio: mean exit layer "
        f"{totals['mean_exit_layer']:.2f} of {report.rows[0].num_layers} ({totals['depth']:.0%} of the layers), "
        f"{totals['seconds']:.1f} s, real-time factor {totals['real_time_factor']:.4f}"
    )
    if report.num_resumed:
        say(f"{report.num_resumed} of them were finished before")
    for layer, rates in report.rates().items() if report.references else ():
        say(f"{'all' if layer == 'all' else f'exit layer {layer}'}: {_describe_rates(rates)}")


def _describe_rates(rates: ErrorRates) -> str:
    return f"WER {rates.wer:.2%} of {rates.num_words} words, CER {rates.cer:.2%} of {rates.num_characters} characters"
