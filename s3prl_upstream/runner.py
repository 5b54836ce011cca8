"""s3prl's runner with exits: its loops are unchanged, with our featurizers, the cache and the log around them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from s3prl.downstream.runner import ModelEntry, Runner
from s3prl.utility.helper import is_leader_process
from torch import nn

from daisy.errors import DaisyError, UsageError
from s3prl_upstream.exit_log import ExitLog
from s3prl_upstream.expert import UpstreamExpert
from s3prl_upstream.featurizer import FEATURIZERS
from s3prl_upstream.lstm import pad_lstms
from s3prl_upstream.options import Options

NAMES = re.compile("filenames|uttname_list|utterid_list|utter_idx|rec_id")
"""Parameters of s3prl's downstream models that hold the names of utterances."""


class ExitRunner(Runner):
    """s3prl's runner with exits; with another upstream than daisy's it behaves like s3prl's own, with faster LSTMs.

    Downstream weights and the order of the data depend on the seed alone, not on the upstream that was built before.

    Args:
        args: s3prl's arguments, with ``daisy["featurizer"]``.
        config: s3prl's configuration.
        options: options of this call.

    Raises:
        UsageError: on options that exclude each other.
        DaisyError: as in the upstream.
    """

    def __init__(self, args: Any, config: dict, options: Options):
        self.options = options
        self.log: ExitLog | None = None
        super().__init__(args, config)

    @property
    def expert(self) -> UpstreamExpert | None:
        """Daisy's upstream, without any wrapper; None for other upstreams."""
        model = getattr(self.upstream.model, "module", self.upstream.model)
        return model if isinstance(model, UpstreamExpert) else None

    def _get_upstream(self) -> ModelEntry:
        self.upstream = super()._get_upstream()
        if self.expert is None:
            if self.args.daisy["featurizer"] != "stock" or self.options.cache:
                raise UsageError(f"--featurizer and --cache are for daisy's upstreams, not for -u {self.args.upstream}")
            return self.upstream
        self._keep_to_what_was_trained_on(self.expert)
        if self.upstream.trainable and self.options.cache:
            raise UsageError("--cache is for a frozen upstream, and -f trains it: leave one of them out")
        was_tuned = bool(self.init_ckpt.get("Upstream"))
        if was_tuned:
            self.expert.weights_were_loaded()
        wants_exits = not self.upstream.trainable and "args.upstream_trainable" in (self.args.override or "")
        if self.upstream.trainable or (was_tuned and not wants_exits):
            self.expert.exits_off()
        if is_leader_process():
            policy, featurizer = self.expert.encoder.policy.name, self.args.daisy["featurizer"]
            print(f"[daisy] {self.expert.checkpoint}: policy {policy}, featurizer {featurizer}", flush=True)
        return self.upstream

    def _keep_to_what_was_trained_on(self, expert: UpstreamExpert) -> None:
        """Keep the weights and exits with which an experiment was started, unless others are requested by name.

        Raises:
            UsageError: where a file has changed since.
        """
        encoder = expert.encoder
        policy = [encoder.policy.to_config(), encoder.score_stride]
        made_with = {"checkpoint": expert.digest, "policy": hashlib.sha256(_canonical(policy)).hexdigest()}
        asked = self.args.override or ""
        for name, option in (("checkpoint", "upstream_ckpt"), ("policy", "upstream_model_config")):
            before = self.args.daisy.get(name)
            if self.args.past_exp and before not in (None, made_with[name]) and f"args.{option}" not in asked:
                raise UsageError(
                    f"the {name} is no longer the one that {self.args.past_exp} was trained with; "
                    f"-o args.{option}=... takes another on purpose"
                )
        self.args.daisy = {**self.args.daisy, **made_with}

    def _get_featurizer(self) -> ModelEntry:
        if self.expert is None:
            return super()._get_featurizer()
        args, options = self.args, self.options
        if options.cache_mean:
            check_mean(self.config)
        model = FEATURIZERS[args.daisy["featurizer"]](
            self.expert,
            feature_selection=args.upstream_feature_selection,
            layer_selection=args.upstream_layer_selection,
            normalize=args.upstream_feature_normalize,
            mean=options.cache_mean,
        ).to(args.device)
        if options.cache:
            self.expert.cache_in(options.cache, options.cache_dtype or "float16", options.cache_full)
        return self._init_model(model, "Featurizer", True, ["output_dim", "downsample_rate"])

    def _get_downstream(self) -> ModelEntry:
        keep_file_lists(self.args.downstream, self.config, Path(self.args.expdir))
        torch.manual_seed(self.args.seed)
        try:
            entry = super()._get_downstream()
        except (ImportError, OSError, KeyError, IndexError) as error:
            reason = f"{type(error).__name__} {error}" if isinstance(error, LookupError) else error
            raise UsageError(f"-d {self.args.downstream} cannot be set up with its configuration: {reason}") from None
        pad_lstms(entry.model)
        if self.expert is not None and is_leader_process():
            log = ExitLog(Path(self.args.expdir), self.expert.encoder, self._settings(self.expert))
            self._watch(entry.model, self.expert, log)
            self.log = log
        elif self.expert is not None and self.expert.cache:
            # Crops are noticed by the leader's log, so it is enough that it stores training audio.
            self.expert.cache.may_write = lambda: not entry.model.training
        return entry

    def train(self) -> None:
        with self._summarised():
            super().train()
        self._report()

    def evaluate(self, split: str | None = None, logger: Any = None, global_step: int = 0) -> list[str]:
        try:
            with self._summarised():
                return super().evaluate(split, logger, global_step)
        finally:
            if split is None:
                self._report()

    def inference(self) -> None:
        super().inference()
        if self.log and self.expert:
            self.log.add("inference", [Path(self.args.evaluate_split).stem], self.expert.last)
        self._summarise()
        self._report()

    def _watch(self, model: nn.Module, expert: UpstreamExpert, log: ExitLog) -> None:
        """Log every batch, and announce each pass through a split to log and cache."""
        cache, original, seen = expert.cache, model.get_dataloader, set()

        def note(model: nn.Module, arguments: tuple) -> None:
            """Log a batch just before the downstream model, when the upstream has run and utterances have names."""
            split, features, *others = arguments
            names = utterance_names(getattr(model, "module", model), others, len(features))
            log.add(split, names, expert.last)

        def get_dataloader(split: str, *arguments: Any, **keywords: Any) -> Any:
            try:
                loader = original(split, *arguments, **keywords)
            except (AttributeError, OSError) as error:
                raise UsageError(f"-d {self.args.downstream} has no data for split {split}: {error}") from None
            log.new_pass(split)
            if cache and split not in seen:
                seen.add(split)
                cache.expect(split, len(loader))
            return loader

        model.register_forward_pre_hook(note)
        vars(model)["get_dataloader"] = get_dataloader  # takes precedence over the class's
        if cache:
            cache.may_write = lambda: not (log.crops and model.training)

    def _settings(self, expert: UpstreamExpert) -> dict:
        policy = expert.encoder.policy.to_config()
        return {
            "mode": self.args.mode,
            "task": self.args.downstream,
            "upstream": self.args.upstream,
            "checkpoint": expert.checkpoint,
            "checkpoint_digest": expert.digest,
            "policy": {name: value for name, value in policy.items() if not isinstance(value, list | tuple)},
            "policy_digest": hashlib.sha256(_canonical(policy)).hexdigest()[:16],
            "score_stride": expert.encoder.score_stride,
            "num_layers": expert.num_layers,
            "featurizer": self.args.daisy["featurizer"],
            "trainable": self.upstream.trainable,
            "seed": self.args.seed,
            "init_ckpt": str(self.args.init_ckpt) if self.args.init_ckpt else None,
            "override": self.args.override,
            "data": self.config.get("downstream_expert", {}).get("datarc"),
            "cache": str(expert.cache.folder) if expert.cache else None,
            "recorded_to_the_end": expert.records,
        }

    @contextlib.contextmanager
    def _summarised(self) -> Iterator[None]:
        """Write the summary at the end of a run, however it ends; a full disk here does not hide the original error."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(DaisyError, OSError):
                self._summarise()
            raise
        self._summarise()

    def _summarise(self) -> None:
        if self.log:
            self.log.write_summary()

    def _report(self) -> None:
        if self.log and self.log.totals():
            print(self.log.report(), flush=True)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def utterance_names(model: nn.Module, others: Sequence, batch: int) -> list[str]:
    """List the names that s3prl's dataset gives the utterances of a batch.

    Args:
        model: the downstream model, whose parameter names show which argument holds them.
        others: arguments of its ``forward`` after split and features.
        batch: number of utterances.

    Returns:
        ``batch`` names, or an empty list where the task gives none.
    """
    parameters = list(inspect.signature(model.forward).parameters)[2:]
    for name, value in zip(parameters, others, strict=False):
        if NAMES.fullmatch(name) and isinstance(value, list | tuple) and len(value) == batch:
            return [str(item) for item in value]
    return []


def check_mean(config: dict) -> None:
    """Refuse ``--cache-mean`` where the mean over time does not commute with the first steps of the task's model.

    Raises:
        UsageError: naming the setting that forbids it.
    """
    modelrc = config.get("downstream_expert", {}).get("modelrc", {})
    kind = modelrc.get("select")
    settings = modelrc.get(kind) or {}
    if kind != "UtteranceLevel" or settings.get("pooling", "MeanPooling") != "MeanPooling" or settings.get("pre_net"):
        raise UsageError("--cache-mean is for a downstream model UtteranceLevel with MeanPooling and without pre_net")
    if config.get("specaug"):
        raise UsageError("--cache-mean leaves specaug nothing to mask: leave one of them out")


def keep_file_lists(task: str, config: dict, folder: Path) -> None:
    """Move a task's cache of file lists, which s3prl keeps for all data in its package, to this experiment's folder.

    Raises:
        UsageError: where the task cannot be loaded.
    """
    try:
        dataset = importlib.import_module(f"s3prl.downstream.{task}.dataset")
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("s3prl.downstream."):
            return
        raise UsageError(f"-d {task} needs {error.name}: pip install {error.name}") from None
    except ImportError as error:
        raise UsageError(f"-d {task} cannot be loaded: {error}") from None
    if not hasattr(dataset, "CACHE_PATH"):
        return
    datarc = config.get("downstream_expert", {}).get("datarc", {})
    state = hashlib.sha256(json.dumps(datarc, sort_keys=True, default=str).encode())
    meta_data = Path(str(datarc.get("meta_data")))
    if meta_data.is_file():
        state.update(meta_data.read_bytes())
    vars(dataset)["CACHE_PATH"] = str(folder / "file_lists" / state.hexdigest()[:16])
