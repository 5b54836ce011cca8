"""daisy transcribe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daisy.cli.console import explain, report_failures, say, say_table, warn_of_rest
from daisy.cli.options import Device, check_device, parse_settings
from daisy.cli.progress import track

if TYPE_CHECKING:
    from daisy.errors import AudioError
    from daisy.recognition import Recogniser, Transcript

FORMAT_VERSION = 1
"""Of the JSON file."""

Inputs = Annotated[list[str], typer.Argument(help="Files, folders, globs, or manifests.")]
Checkpoint = Annotated[str, typer.Option("--checkpoint", "-c", help="A daisy checkpoint of a recogniser.")]
PolicyName = Annotated[
    str,
    typer.Option("--policy", "-p", help="A policy's name, or a file of daisy calibrate; else the checkpoint's own."),
]
PolicySettings = Annotated[list[str] | None, typer.Option(help="A setting of the policy, such as threshold=0.1.")]
Heads = Annotated[
    Literal["ctc", "units"],
    typer.Option(help="Whose scores the policy reads: of the exits that write the text, or of DAISY's own heads."),
]
Json = Annotated[Path | None, typer.Option("--json", help="Write texts, exits, confidences and word times here.")]
BatchSec = Annotated[float, typer.Option(help="Seconds of audio in a batch.")]
Beam = Annotated[int, typer.Option(help="Hypotheses that a beam search keeps; 0 decodes greedily.")]
Lexicon = Annotated[Path | None, typer.Option(help="With --beam: a file of words and their spellings.")]
LanguageModel = Annotated[Path | None, typer.Option(help="With --beam: a KenLM model.")]


def command(
    inputs: Inputs,
    checkpoint: Checkpoint,
    policy: PolicyName = "",
    set: PolicySettings = None,
    heads: Heads = "ctc",
    json: Json = None,
    beam: Beam = 0,
    lexicon: Lexicon = None,
    language_model: LanguageModel = None,
    batch_sec: BatchSec = 30.0,
    device: Device = "cpu",
) -> None:
    """Recognise speech, each recording at its own exit.

    Exit status 1: some recordings could not be read; 2: nothing was done.
    """
    from daisy import _files, audio, checkpoints
    from daisy.errors import AudioError, UsageError
    from daisy.recognition import BeamSearch, Recogniser, transcribe

    if not beam and (lexicon or language_model):
        raise UsageError("--lexicon and --language-model are of a beam search: give --beam too")
    findings = audio.search(inputs)
    model = checkpoints.load(checkpoint, device=check_device(device))
    decode = None
    if beam and model.tokens is not None:
        decode = BeamSearch(model.tokens, beam_size=beam, lexicon=lexicon, language_model=language_model)
    settings: dict[str, Any] = {**parse_settings(set or [])}
    recogniser = Recogniser(model, policy or None, heads=heads, decode=decode, **settings)
    transcripts: dict[str, Transcript] = {}
    failed: dict[str, AudioError] = {}
    with track("transcribing", len(findings.recordings)) as advance:
        for recording, result in transcribe(recogniser, findings.recordings, batch_sec):
            if isinstance(result, AudioError):
                failed[recording.label] = result
            else:
                transcripts[recording.label] = result
            advance(1)
    ordered = {r.label: transcripts[r.label] for r in findings.recordings if r.label in transcripts}
    _say_transcripts(ordered)
    if json is not None:
        _files.write_json(json, _to_json(checkpoint, recogniser, ordered, failed))
    warn_of_rest(findings)
    report_failures([f"{label}: {explain(error)}" for label, error in failed.items()], len(transcripts))


def _say_transcripts(transcripts: dict[str, Transcript]) -> None:
    """Print each recording's text, exit layer and confidence, and the mean exit layer."""
    from rich.table import Table

    if not transcripts:
        return
    table = Table("recording", "exit layer", "confidence", "text", box=None, pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    for label, transcript in transcripts.items():
        exit_layer = f"{transcript.exit_layer} of {transcript.num_layers}"
        table.add_row(label, exit_layer, f"{transcript.confidence:.3f}", transcript.text)
    say_table(table)
    layers = [transcript.exit_layer for transcript in transcripts.values()]
    num_layers = next(iter(transcripts.values())).num_layers
    mean = sum(layers) / len(layers)
    say(f"{len(layers)} recordings: mean exit layer {mean:.2f} of {num_layers} ({mean / num_layers:.0%} of the layers)")


def _to_json(
    checkpoint: str, recogniser: Recogniser, transcripts: dict[str, Transcript], failed: dict[str, AudioError]
) -> dict[str, Any]:
    """What --json writes: texts by recording, and why others have none."""
    from daisy import checkpoints

    return {
        "format_version": FORMAT_VERSION,
        "checkpoint": {"name": Path(checkpoint).stem, "digest": checkpoints.digest(checkpoint)},
        "policy": recogniser.encoder.policy.to_config(),
        "exits": list(recogniser.encoder.exits),
        "recordings": [{"path": label, **dataclasses.asdict(transcripts[label])} for label in transcripts],
        "failed": [{"path": label, "reason": str(error)} for label, error in failed.items()],
    }
