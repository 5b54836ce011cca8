"""The types that the exit loop runs: backbones of all kinds, and heads of both kinds.

A backbone has ``config`` (``num_layers``, ``width``, ``sample_rate``, ``max_samples``, and the frame arithmetic of
``conv_layers``, ``frame_hop`` and ``frame_span``), ``front_end``, ``embed``, ``layer``, ``device`` and ``dtype``. Heads
have ``config`` (``layers``, at which they stand, and ``reads``, their input) and the methods of
`daisy.policies.scores.Heads`.
"""

from __future__ import annotations

from daisy.models.config import BackboneConfig
from daisy.models.conformer import Conformer
from daisy.models.conformer_config import ConformerConfig
from daisy.models.ctc_heads import CTCHeads, CTCHeadsConfig
from daisy.models.heads import ExitHeads, HeadsConfig
from daisy.models.hubert import Backbone
from daisy.models.whisper import Whisper
from daisy.models.whisper_config import WhisperConfig

AnyBackbone = Backbone | Conformer | Whisper
AnyBackboneConfig = BackboneConfig | ConformerConfig | WhisperConfig
AnyHeads = ExitHeads | CTCHeads
AnyHeadsConfig = HeadsConfig | CTCHeadsConfig
