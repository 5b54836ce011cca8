"""DAISY: a HuBERT in which each utterance runs as many layers as it needs. For transformers; needs torch besides.

    import torch
    from transformers import AutoFeatureExtractor, AutoModel

    extractor = AutoFeatureExtractor.from_pretrained(FOLDER)
    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()
    inputs = extractor([waveform, other], sampling_rate=16000, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs, exit_policy="entropy")
    out.last_hidden_state, out.exit_layer, out.predicted_loss

``exit_policy`` is one of ``model.config.policies``, "never", or a policy with its settings:
``{"name": "entropy", "threshold": 2.0}``, ``{"name": "fixed", "layer": 6}``. Without it ``model.config.exit_policy``
counts; while the model is trained, that is after ``model.train()`` and with gradients on, "never", so that all layers
learn. An utterance's exit and states are the same alone and in any padded batch, up to rounding: pass the attention
mask. Written by ``daisy export hf`` of the package daisy-speech, which computes the same faster.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Pipeline, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class DaisyConfig(PretrainedConfig):
    """Shape of a HuBERT with exit heads, and default policies."""

    model_type = "daisy"

    def __init__(
        self,
        num_hidden_layers=12,
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        pre_norm=False,
        final_norm=True,
        conv_layers=((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2),
        conv_norm="group",
        conv_bias=False,
        pos_kernel=128,
        pos_groups=16,
        pos_batch_norm=False,
        projection_norm=True,
        layer_norm_eps=1e-5,
        normalize=False,
        normalize_eps=1e-5,
        sampling_rate=16000,
        num_units=0,
        heads_read="states",
        regressors=False,
        policies=None,
        exit_policy="never",
        **kwargs,
    ):
        self.num_hidden_layers, self.hidden_size = num_hidden_layers, hidden_size
        self.intermediate_size, self.num_attention_heads = intermediate_size, num_attention_heads
        self.pre_norm, self.final_norm = pre_norm, final_norm
        self.conv_layers = [list(layer) for layer in conv_layers]  # (channels, kernel, stride) each
        self.conv_norm, self.conv_bias = conv_norm, conv_bias
        self.pos_kernel, self.pos_groups, self.pos_batch_norm = pos_kernel, pos_groups, pos_batch_norm
        self.projection_norm, self.layer_norm_eps = projection_norm, layer_norm_eps
        self.normalize, self.normalize_eps, self.sampling_rate = normalize, normalize_eps, sampling_rate
        self.num_units, self.heads_read, self.regressors = num_units, heads_read, regressors
        self.policies, self.exit_policy = policies or {}, exit_policy
        super().__init__(**kwargs)


# ---- policies: who leaves, from the scores of the layers so far, each (B, layer) ----


class Threshold:
    """Leaves at the first layer whose score is low enough, or high enough."""

    KINDS = {  # noqa: RUF012
        "entropy": ("entropy", True),
        "agreement": ("entropy", True),
        "regressed": ("regressed", True),
        "confidence": ("confidence", False),
        "margin": ("margin", False),
    }

    def __init__(self, name, threshold):
        self.score, self.below = self.KINDS[name]
        self.reads, self.threshold = {self.score}, threshold

    def decide(self, scores, layer):
        now, threshold = scores[self.score][:, -1], at_layer(self.threshold, layer)
        return now <= threshold if self.below else now >= threshold


class Patience:
    """Leaves when the units have stayed the same, but for a share of the frames, for some layers."""

    def __init__(self, tolerance, patience=1):
        self.reads, self.tolerance, self.patience = {"change"}, tolerance, patience

    def decide(self, scores, layer):
        change = scores["change"]
        if layer <= self.patience:  # the first layer has none before it
            return torch.zeros(len(change), dtype=torch.bool)
        allowed = [at_layer(self.tolerance, one + 1) for one in range(layer - self.patience, layer)]
        return (change[:, layer - self.patience :] <= torch.tensor(allowed)).all(1)


class LookAhead:
    """Leaves when no later layer is predicted to gain its price (forecast, plateau, regressed_plateau)."""

    def __init__(self, price, features, weights, intercepts):
        self.reads, self.price, self.features = set(features), price, features
        self.weights = [torch.tensor(rows) for rows in weights]
        self.intercepts = [torch.tensor(row) for row in intercepts]

    def decide(self, scores, layer):
        weights = self.weights[layer - 1]
        seen = torch.cat([scores[name][:, :layer] for name in self.features], dim=1)
        seen = torch.where((weights != 0).any(0), seen, 0.0)  # the change at layer 1 is no number, and not looked at
        gains = seen @ weights.T + self.intercepts[layer - 1]
        return (gains - self.price * torch.arange(1, gains.shape[1] + 1)).amax(1) <= 0


class Cut:
    """Leaves at one layer; where it is None, at the last."""

    def __init__(self, layer=None):
        self.reads, self.layer = set(), layer

    def decide(self, scores, layer):
        return torch.tensor(self.layer is not None and layer >= self.layer)


def at_layer(setting, layer):
    """A setting that is one number for all layers, or one for each."""
    return setting[layer - 1] if isinstance(setting, (list, tuple)) else setting


def make_policy(policy, config):
    """Make a policy from a name or from ``{"name": ..., setting: ...}``; settings that are missing are the model's."""
    given = {"name": policy} if isinstance(policy, str) else dict(policy)
    name = given.pop("name", None)
    settings = {**config.policies.get(name, {}), **given}
    makers = {
        **{kind: lambda threshold, kind=kind: Threshold(kind, threshold) for kind in Threshold.KINDS},
        **dict.fromkeys(("forecast", "plateau", "regressed_plateau"), LookAhead),
        "patience": Patience,
        "fixed": lambda layer: Cut(layer),
        "never": lambda: Cut(),
    }
    if name not in makers:
        raise ValueError(f"unknown exit_policy {name!r}: known are {', '.join(sorted(makers))}")
    try:
        made = makers[name](**settings)
    except TypeError as error:
        raise ValueError(f"exit_policy {name}: settings are missing or unknown ({error})") from None
    layers = config.num_hidden_layers
    if isinstance(made, LookAhead) and len(made.weights) + 1 != layers:
        raise ValueError(
            f"exit_policy {name} was learnt on {len(made.weights) + 1} layers, and this model has {layers}"
        )
    if isinstance(made, Cut) and made.layer is not None and not 1 <= made.layer <= layers:
        raise ValueError(f"exit_policy fixed: layer must be 1 to {layers}, found {made.layer}")
    if made.reads and not config.num_units:
        raise ValueError(f"exit_policy {name} reads exit heads, and this model has none: use fixed or never")
    if "regressed" in made.reads and not config.regressors:
        raise ValueError(f"exit_policy {name} reads loss regressors, and this model has none")
    return made


# ---- the network, with torchaudio's names ----


class ConvLayerNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvLayer(nn.Module):
    def __init__(self, in_channels, channels, kernel, stride, bias, norm):
        super().__init__()
        self.layer_norm = norm
        self.conv = nn.Conv1d(in_channels, channels, kernel, stride, bias=bias)

    def forward(self, x):
        x = self.conv(x)
        return F.gelu(x if self.layer_norm is None else self.layer_norm(x))


class ConvolutionalFrontEnd(nn.Module):
    def __init__(self, config):
        super().__init__()
        layers, in_channels = [], 1
        for index, (channels, kernel, stride) in enumerate(config.conv_layers):
            norm = None
            if config.conv_norm == "layer":
                norm = ConvLayerNorm(channels)
            elif index == 0:
                norm = nn.GroupNorm(channels, channels)
            layers.append(ConvLayer(in_channels, channels, kernel, stride, config.conv_bias, norm))
            in_channels = channels
        self.conv_layers = nn.ModuleList(layers)

    def forward(self, waveforms):  # (B, N) of one length to (B, T, C)
        x = waveforms[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x.transpose(1, 2)


class FeatureProjection(nn.Module):
    def __init__(self, config):
        super().__init__()
        channels = config.conv_layers[-1][0]
        self.layer_norm = nn.LayerNorm(channels, config.layer_norm_eps) if config.projection_norm else None
        self.projection = nn.Linear(channels, config.hidden_size)

    def forward(self, features):
        return self.projection(features if self.layer_norm is None else self.layer_norm(features))


class FixedBatchNorm(nn.Module):
    """Batch norm with the statistics that training left."""

    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x):
        return F.batch_norm(
            x.transpose(1, 2), self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        ).transpose(1, 2)


class PositionalConvolution(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, kernel = config.hidden_size, config.pos_kernel
        self.batch_norm = FixedBatchNorm(width) if config.pos_batch_norm else None
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.pos_groups)

    def forward(self, x, valid):  # x is zero where no frame is valid
        if self.batch_norm is not None:
            x = self.batch_norm(x) * valid[..., None]
        y = convolve_in_groups(self.conv, x.transpose(1, 2))
        return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)  # an even kernel gives one frame too many


def convolve_in_groups(conv, x):
    """Run a grouped convolution, in float32 where oneDNN's bfloat16 is wrong: on CPUs with AMX, for narrow groups."""
    narrow = x.device.type == "cpu" and conv.in_channels // conv.groups < 16
    dtype = torch.get_autocast_dtype("cpu") if narrow and torch.is_autocast_enabled("cpu") else x.dtype
    if not narrow or dtype != torch.bfloat16:
        return conv(x)
    with torch.autocast("cpu", enabled=False):
        y = F.conv1d(x.float(), conv.weight.float(), conv.bias.float(), padding=conv.padding, groups=conv.groups)
    return y.to(dtype)


class SelfAttention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x, mask):
        queries, keys, values = (
            projection(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width, inner_width):
        super().__init__()
        self.intermediate_dense, self.output_dense = nn.Linear(width, inner_width), nn.Linear(inner_width, width)

    def forward(self, x):
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class TransformerLayer(nn.Module):
    """Gives its output, and the feed-forward block's before residual and norm."""

    def __init__(self, config):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.pre_norm = config.pre_norm
        self.attention = SelfAttention(width, config.num_attention_heads)
        self.layer_norm = nn.LayerNorm(width, eps)
        self.feed_forward = FeedForward(width, config.intermediate_size)
        self.final_layer_norm = nn.LayerNorm(width, eps)

    def forward(self, states, mask):
        if self.pre_norm:
            attended = states + self.attention(self.layer_norm(states), mask)
            feed_forward = self.feed_forward(self.final_layer_norm(attended))
            return attended + feed_forward, feed_forward
        attended = self.layer_norm(states + self.attention(states, mask))
        feed_forward = self.feed_forward(attended)
        return self.final_layer_norm(attended + feed_forward), feed_forward


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.pos_conv_embed = PositionalConvolution(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_hidden_layers))


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.feature_projection = FeatureProjection(config)
        self.transformer = Transformer(config)


class Backbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.feature_extractor, self.encoder = ConvolutionalFrontEnd(config), Encoder(config)
        self.mask_embedding = nn.Parameter(torch.zeros(config.hidden_size))


class LossRegressor(nn.Module):
    """Linear from mean and standard deviation of an utterance's frames to the loss of the head on it, in nats."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(2 * width, 1)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(2 * width + 1))
        self.register_buffer("variance", torch.ones(2 * width + 1))

    def forward(self, pooled):
        mean, deviation = self.mean.float(), self.variance.float().clamp(min=1e-8).sqrt()
        standardised = (pooled - mean[:-1]) / deviation[:-1]
        return (
            mean[-1]
            + deviation[-1] * F.linear(standardised, self.linear.weight.float(), self.linear.bias.float())[:, 0]
        )


class ExitHeads(nn.Module):
    def __init__(self, config):
        super().__init__()
        layers = range(config.num_hidden_layers)
        self.units = nn.ModuleList(nn.Linear(config.hidden_size, config.num_units) for _ in layers)
        self.regressors = (
            nn.ModuleList(LossRegressor(config.hidden_size) for _ in layers) if config.regressors else None
        )


class Scores:
    """What the heads say of one layer, (B,) each, computed where it is asked for."""

    def __init__(self, heads, layer, features, valid, previous_units):
        self.heads, self.layer, self.features = heads, layer, features
        self.valid, self.previous_units = valid.float(), previous_units
        self.log_probs = heads.units[layer - 1](features).float().log_softmax(-1)
        self.units = self.log_probs.argmax(-1)

    def average(self, values):  # (B, T) or (B, T, D) over an utterance's own frames
        valid = self.valid if values.ndim == 2 else self.valid[..., None]
        return (values * valid).sum(1) / valid.sum(1)

    def entropy(self):
        return self.average(-(self.log_probs.exp() * self.log_probs).sum(-1))

    def confidence(self):
        return self.average(self.log_probs.amax(-1).exp())

    def margin(self):
        first, second = self.log_probs.topk(2, dim=-1).values.exp().unbind(-1)
        return self.average(first - second)

    def change(self):
        if self.previous_units is None:
            return torch.full((len(self.valid),), math.nan, device=self.valid.device)
        return self.average((self.units != self.previous_units).float())

    def regressed(self):
        features = self.features.float()
        mean = self.average(features)
        deviation = self.average((features - mean[:, None]).square()).sqrt()
        return self.heads.regressors[self.layer - 1](torch.cat([mean, deviation], dim=1))


@dataclass
class DaisyOutput(ModelOutput):
    """What a batch of B utterances gives; T frames and L layers."""

    last_hidden_state: torch.FloatTensor = None
    """(B, T, D): each utterance's states of its exit layer, zero past its end."""
    hidden_states: tuple = None
    """Layers 0 to the deepest exit, (B, T, D) each; zero where an utterance has left or ended."""
    exit_layer: torch.LongTensor = None
    """(B,), 1 to L: the last layer that ran."""
    predicted_loss: torch.FloatTensor = None
    """(B, L) nats: mean entropy of the units; NaN where a layer did not run. None without exit heads."""
    frame_mask: torch.BoolTensor = None
    """(B, T): which frames belong to the utterance."""
    units: torch.LongTensor = None
    """(B, T): the likeliest unit at the exit, counted without fairseq's four special symbols; -1 past the end."""


SPECIAL_SYMBOLS = 4


class DaisyModel(PreTrainedModel):
    """HuBERT with early exits."""

    config_class = DaisyConfig
    main_input_name = "input_values"
    base_model_prefix = "daisy"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.backbone = Backbone(config)
        self.heads = ExitHeads(config) if config.num_units else None
        self.made_policy = None, None  # what it was made of, and the policy
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=0.02)
            if module.bias is not None:
                module.bias.data.zero_()

    def forward(
        self,
        input_values,
        attention_mask=None,
        exit_policy=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        """Run each utterance until its policy lets it leave.

        Args:
            input_values: (B, N) samples at ``config.sampling_rate``.
            attention_mask: (B, N), 1 where a sample belongs to the utterance; None: all do.
            exit_policy: see the top of this file; None: ``config.exit_policy``, or "never" while the model is trained.
            output_hidden_states: return the states of all layers that ran too.
            return_dict: False: a tuple.
        """
        if exit_policy is None:  # layers behind an exit get no gradient: where the model is trained, none leaves
            exit_policy = "never" if self.training and torch.is_grad_enabled() else self.config.exit_policy
        policy = self.find_policy(exit_policy)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        states, counts = self.embed(input_values, attention_mask)
        batch, length = states.shape[:2]
        num_layers = self.config.num_hidden_layers
        valid = torch.arange(length, device=states.device) < counts[:, None].to(states.device)
        exit_layer = torch.full((batch,), num_layers)
        active, alive, units = torch.arange(batch), valid, None
        last = torch.zeros_like(states)
        unknown = torch.full((batch, num_layers), math.nan, device=last.device)
        trajectories = {name: unknown.clone() for name in {*policy.reads, "entropy"}}
        last_units = torch.full((batch, length), -1, device=states.device)
        hidden = [states]
        for layer in range(1, num_layers + 1):
            states, features = self.run_layer(layer, states, alive)
            if output_hidden_states:
                hidden.append(last.new_zeros(last.shape).index_copy(0, active.to(last.device), states))
            if self.heads is not None:
                scores = Scores(self.heads, layer, features, alive, units)
                units = scores.units
                for name, values in trajectories.items():
                    values[active, layer - 1] = getattr(scores, name)().detach()
            leave = torch.ones(len(active), dtype=torch.bool)
            if layer < num_layers:
                seen = {name: trajectories[name][active, :layer].cpu() for name in policy.reads}
                leave = policy.decide(seen, layer).expand(len(active))
            if not leave.any():
                continue
            rows = active[leave].to(last.device)
            last = last.index_copy(0, rows, states[leave] * alive[leave][..., None])
            exit_layer[active[leave]] = layer
            if self.heads is not None:
                best = scores.log_probs[leave][..., SPECIAL_SYMBOLS:].argmax(-1)
                last_units[rows] = best.masked_fill(~alive[leave], -1)
                units = units[~leave]
            states, alive, active = states[~leave], alive[~leave], active[~leave]
            if not len(active):
                break
        output = DaisyOutput(
            last_hidden_state=last,
            hidden_states=tuple(hidden) if output_hidden_states else None,
            exit_layer=exit_layer.to(last.device),
            predicted_loss=None if self.heads is None else trajectories["entropy"],
            frame_mask=valid,
            units=None if self.heads is None else last_units,
        )
        return output.to_tuple() if return_dict is False else output

    def find_policy(self, wanted):
        """Make a policy, or take the last call's where all settings are the same: long lists take milliseconds."""
        wanted = wanted if isinstance(wanted, str) else dict(wanted)
        made_of = wanted, {name: dict(settings) for name, settings in self.config.policies.items()}
        if self.made_policy[0] != made_of:
            self.made_policy = made_of, make_policy(wanted, self.config)
        return self.made_policy[1]

    def embed(self, input_values, attention_mask):
        """Turn (B, N) samples into layer 0, (B, T, D) with zeros past each end, and frame counts (B,).

        Utterances of one length are convolved together, others one by one, so that statistics over time are their own.
        """
        counts = torch.full((len(input_values),), input_values.shape[1])
        if attention_mask is not None:
            mask = attention_mask.bool().cpu()
            counts = mask.sum(1)
            if not torch.equal(mask, torch.arange(input_values.shape[1]) < counts[:, None]):
                raise ValueError(
                    "attention_mask must be 1 from each row's first sample on: padding on the right, no gaps"
                )
        lengths, span = counts.tolist(), self.count_frame_span()
        if min(lengths) < span:
            raise ValueError(f"an utterance of {min(lengths)} samples is too short: one frame needs {span}")
        if min(lengths) == max(lengths):
            features = self.convolve(input_values[:, : lengths[0]])
        else:
            rows = [self.convolve(row[None, :count])[0] for row, count in zip(input_values, lengths)]
            features = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        for _, kernel, stride in self.config.conv_layers:
            counts = (counts - kernel) // stride + 1
        valid = torch.arange(features.shape[1], device=features.device) < counts[:, None].to(features.device)
        encoder = self.backbone.encoder
        projected = encoder.feature_projection(features) * valid[..., None]
        states = projected + encoder.transformer.pos_conv_embed(projected, valid)
        if not self.config.pre_norm:
            states = encoder.transformer.layer_norm(states)
        return states * valid[..., None], counts

    def convolve(self, waveforms):
        if self.config.normalize:
            waveforms = F.layer_norm(waveforms.float(), waveforms.shape[-1:], eps=self.config.normalize_eps)
        return self.backbone.feature_extractor(waveforms.to(self.dtype))

    def run_layer(self, layer, states, valid):
        """Run one layer, (B, T, D) to its output and to what the heads read."""
        mask = None if bool(valid.all()) else valid[:, None, None, :]
        transformer = self.backbone.encoder.transformer
        states, feed_forward = transformer.layers[layer - 1](states, mask)
        if self.config.pre_norm and self.config.final_norm and layer == self.config.num_hidden_layers:
            states = transformer.layer_norm(states).to(states.dtype)  # autocast on a GPU gives norms in float32
        states = states * valid[..., None]
        return states, states if self.config.heads_read == "states" else feed_forward

    def count_frame_span(self):
        """Samples that one frame sees."""
        span = 1
        for _, kernel, stride in reversed(self.config.conv_layers):
            span = (span - 1) * stride + kernel
        return span


class DaisyFeatureExtraction(Pipeline):
    """``pipeline("feature-extraction", model=FOLDER, trust_remote_code=True)`` of waveforms or file names.

    Takes a waveform (N,) or (channels, N), ``{"raw": waveform, "sampling_rate": Hz}`` or a file's name, or a list of
    these; the mean of channels is heard. Gives the states of the exit layer, as nested lists, or with
    ``return_tensors=True`` as (1, T, D) tensors, whatever ``batch_size`` is.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def _sanitize_parameters(self, exit_policy=None, return_tensors=None, **unknown):
        if unknown:
            raise TypeError(f"unknown arguments {', '.join(unknown)}: known are exit_policy and return_tensors")
        forward = {} if exit_policy is None else {"exit_policy": exit_policy}
        return {}, forward, {} if return_tensors is None else {"return_tensors": return_tensors}

    def preprocess(self, inputs):
        rate = self.feature_extractor.sampling_rate
        if isinstance(inputs, str):
            import soundfile

            waveform, given = soundfile.read(inputs, dtype="float32", always_2d=True)
            waveform = waveform.mean(1)
        elif isinstance(inputs, dict):
            waveform = inputs.get("raw", inputs.get("array"))
            given = inputs["sampling_rate"]
        else:
            waveform, given = inputs, rate
        if given != rate:
            raise ValueError(f"the model takes audio at {rate} Hz, found {given} Hz: resample it")
        waveform = torch.as_tensor(waveform, dtype=torch.float32)
        if waveform.ndim == 2:
            waveform = waveform.mean(0)
        return self.feature_extractor(waveform.numpy(), sampling_rate=rate, return_tensors="pt")

    def _forward(self, inputs, **forward):
        return self.model(**inputs, **forward)

    def postprocess(self, outputs, return_tensors=False):
        states = outputs["last_hidden_state"][:, outputs["frame_mask"][0]]  # one recording, padded like its batch
        return states if return_tensors else states.tolist()
