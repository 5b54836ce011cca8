"""``daisy_hubert_pretraining``: ``hubert_pretraining`` with corrupted speech as input and clean units as targets."""

from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035  OmegaConf 2.0 only reads typing.List

import torch
from fairseq.data import BaseWrapperDataset, data_utils
from fairseq.tasks import register_task
from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig, HubertPretrainingTask
from omegaconf import II
from torch import Tensor
from torch.nn import functional as F

from daisy.audio import mixing
from daisy.audio.augmentation import Augmentation, Augmenter
from daisy.errors import UsageError
from fairseq_plugins.label_files import check_dataset

MAX_TALKERS_BANK = 400
MAX_ROOMS = 200
EPOCHS_APART = 1_000_003
SEEDS_APART = 2_654_435_761
"""Step between seeds of torch's generators, which use only the lowest 32 bits of a seed."""


@dataclass
class DaisyPretrainingConfig(HubertPretrainingConfig):
    augmented_splits: str = field(
        default="train", metadata={"help": "splits that are heard corrupted, comma-separated; the others stay clean"}
    )
    noise_manifest: str = field(default="", metadata={"help": "manifest of noise recordings"})
    noise_prob: float = field(default=0.0, metadata={"help": "share of utterances with recorded noise"})
    talkers_prob: float = field(
        default=0.0, metadata={"help": "share of the others with other talkers of the same split, one or a babble"}
    )
    max_talkers: int = field(default=8, metadata={"help": "most talkers in a babble"})
    snr_db: List[float] = field(
        default_factory=lambda: [-5.0, 20.0], metadata={"help": "range of signal-to-noise ratios in dB: [low, high]"}
    )
    reverb_prob: float = field(default=0.0, metadata={"help": "share of utterances heard in a simulated room"})
    gain_db: List[float] = field(
        default_factory=lambda: [0.0, 0.0], metadata={"help": "range of gains in dB: [low, high]"}
    )
    speeds: List[float] = field(default_factory=lambda: [1.0], metadata={"help": "speeds to draw from"})
    cache_audio: bool = field(
        default=False, metadata={"help": "decode each recording once and keep it: 230 MB an hour and process"}
    )
    seed: int = II("common.seed")


@register_task("daisy_hubert_pretraining", dataclass=DaisyPretrainingConfig)
class DaisyPretrainingTask(HubertPretrainingTask):
    """fairseq's task, except that the training splits are corrupted, and that labels are checked."""

    cfg: DaisyPretrainingConfig

    def load_dataset(self, split: str, **kwargs: Any) -> None:
        super().load_dataset(split, **kwargs)
        check_dataset(self.datasets[split])
        if split in self.cfg.augmented_splits.split(","):
            self.datasets[split] = CorruptedSpeech(self.datasets[split], self.cfg)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model; a checkpoint has all weights, and must load even if the initial model's file is gone."""
        if from_checkpoint and getattr(cfg, "warm_start", ""):
            cfg.warm_start = ""
        return super().build_model(cfg, from_checkpoint)


class CorruptedSpeech(BaseWrapperDataset):
    """A `HubertDataset` whose utterances are cropped, changed in speed and corrupted; their labels are adapted.

    Corruptions are drawn from an utterance's index, the epoch and the seed; rooms, and the recordings of background
    speech, are the same with every seed.
    """

    def __init__(self, dataset: Any, cfg: DaisyPretrainingConfig):
        super().__init__(dataset)
        self.epoch, self.seed = 1, cfg.seed
        if cfg.label_rate <= 0 or cfg.sample_rate % cfg.label_rate:
            raise UsageError(f"label_rate must divide the sample rate, found {cfg.label_rate}")
        self.samples_per_label = int(cfg.sample_rate / cfg.label_rate)
        self.cache: dict[str, Tensor] | None = {} if cfg.cache_audio else None
        self.normalize, dataset.normalize = cfg.normalize, False  # normalise the corrupted speech, not the clean one
        settings = Augmentation(
            noise_prob=cfg.noise_prob,
            talkers_prob=cfg.talkers_prob,
            max_talkers=cfg.max_talkers,
            snr_db=tuple(cfg.snr_db),
            reverb_prob=cfg.reverb_prob,
            gain_db=tuple(cfg.gain_db),
            speeds=tuple(cfg.speeds),
        )
        noises = mixing.NoiseBank.from_manifest(cfg.noise_manifest, cfg.sample_rate) if cfg.noise_manifest else None
        self.talkers = self._some_speech() if cfg.talkers_prob else {}
        talkers = mixing.NoiseBank([*self.talkers.values()]) if cfg.talkers_prob else None
        if talkers is not None and len(talkers.recordings) < 2:
            raise UsageError(f"talkers_prob is {cfg.talkers_prob}, and there is one recording to draw from")
        responses = mixing.simulate_rooms(MAX_ROOMS, seed=0, sample_rate=cfg.sample_rate) if cfg.reverb_prob else []
        self.augmenter = Augmenter(settings, noises, talkers, responses, cfg.sample_rate)

    def _some_speech(self) -> dict[str, Tensor]:
        """Return recordings by name, each once, however often a balanced manifest lists it."""
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(0))
        indices = {self.dataset.audio_names[index]: index for index in order[:MAX_TALKERS_BANK].tolist()}
        return {name: self._audio(index) for name, index in indices.items()}

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        # Seed 1, that of the configurations, gives the same draws as before seeds were used here.
        place = SEEDS_APART * (self.seed - 1) + EPOCHS_APART * self.epoch + index
        generator = torch.Generator().manual_seed(place % 2**32)
        speed = self.augmenter.draw_speed(generator)
        source, labels = self._crop(self._audio(index), self.dataset.get_labels(index), speed, generator)
        own = self.talkers.get(self.dataset.audio_names[index])
        source = self.augmenter(self.augmenter.change_speed(source, speed), generator, own)
        if self.normalize:
            source = F.layer_norm(source, source.shape)
        return {"id": index, "source": source, "label_list": [_stretched(units, speed) for units in labels]}

    def collater(self, samples: list[dict]) -> dict:
        """Make a batch, cropped as fairseq crops it, but at places drawn as the corruptions are."""
        with data_utils.numpy_seed(self.seed, self.epoch, *(sample["id"] for sample in samples)):
            return super().collater(samples)

    def _audio(self, index: int) -> Tensor:
        """Return a recording's samples, (N,); one that a balanced manifest lists many times is kept once."""
        if self.cache is None:
            return self.dataset.get_audio(index)
        name = self.dataset.audio_names[index]
        if name not in self.cache:
            self.cache[name] = self.dataset.get_audio(index)
        return self.cache[name]

    def _crop(
        self, source: Tensor, labels: list[Tensor], speed: float, generator: torch.Generator
    ) -> tuple[Tensor, list[Tensor]]:
        """Crop a random stretch as long as a training example, from the start of a label; only this is corrupted."""
        wanted = int(min(self.dataset.max_sample_size, len(source)) * speed)
        spare = (len(source) - wanted) // self.samples_per_label
        if spare <= 0:
            return source, labels
        start = int(torch.randint(spare + 1, (1,), generator=generator)) if self.dataset.random_crop else 0
        first = start * self.samples_per_label
        stop = start + -(-wanted // self.samples_per_label)
        return source[first : first + wanted], [units[start:stop] for units in labels]


def _stretched(labels: Tensor, speed: float) -> Tensor:
    """Return the labels of speech whose speed was changed: the original label at the middle of each frame."""
    if speed == 1.0:
        return labels
    places = ((torch.arange(int(len(labels) / speed)) + 0.5) * speed).long()
    return labels[places.clamp(max=len(labels) - 1)]
