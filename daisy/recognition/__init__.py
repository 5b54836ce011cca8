"""Speech recognition with exits: texts, and the layers at which they were read."""

from daisy.recognition.attention import AttentionSearch
from daisy.recognition.beam import BeamSearch
from daisy.recognition.decoding import Hypothesis, Word, decode_greedily, find_words
from daisy.recognition.error_rates import ErrorRates, count_errors, measure_error_rates
from daisy.recognition.recogniser import Recogniser, Transcript
from daisy.recognition.recordings import transcribe
from daisy.recognition.transcriber import Transcriber
from daisy.recognition.transcript_files import TranscriptReport
from daisy.recognition.transcript_rows import TranscriptRow

__all__ = [
    "AttentionSearch",
    "BeamSearch",
    "ErrorRates",
    "Hypothesis",
    "Recogniser",
    "Transcriber",
    "Transcript",
    "TranscriptReport",
    "TranscriptRow",
    "Word",
    "count_errors",
    "decode_greedily",
    "find_words",
    "measure_error_rates",
    "transcribe",
]
