"""Metadata, dependencies and extras; the build system and the tools' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "daisy" / "version.py").read_text(), re.M).group(1)

GENUINE = 'python_version < "3.11"'  # fairseq 0.12.2 has mutable dataclass defaults, which Python 3.11 rejects
FORK = 'python_version >= "3.11"'

setup(
    name="daisy-speech",
    version=VERSION,
    description="Early exit from speech representation models: HuBERT that stops at the layer each recording needs",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["daisy", "daisy.*", "fairseq_plugins", "fairseq_plugins.*", "s3prl_upstream"]),
    package_data={
        "daisy": ["py.typed", "assets/*", "assets/demo/*", "assets/templates/*"],
        "fairseq_plugins": ["config/*.yaml", "pretrain.sh"],
    },
    entry_points={"console_scripts": ["daisy = daisy.cli:main", "daisy-s3prl = s3prl_upstream.run_downstream:main"]},
    install_requires=[
        "torch>=2.5,<2.6",
        "torchaudio>=2.5,<2.6",
        "numpy>=1.23,<2",
        "soundfile>=0.13",  # its wheels bring a libsndfile that reads Ogg Opus and MP3
        "safetensors>=0.4",
        "typer>=0.20",  # the command line only
        "rich>=13",
    ],
    extras_require={
        "fairseq": [
            f"fairseq==0.12.2; {GENUINE}",
            f"fairseq-fixed==0.12.3.1; {FORK}",
            "tensorboardX>=2.6",
            "scikit-learn>=1.3",
            "pyroomacoustics>=0.8",
        ],
        "s3prl": [
            "s3prl==0.4.18",
            "huggingface_hub>=0.23,<1",  # run_downstream imports Repository and HfFolder, gone in 1.0
            "tensorboardX>=2.6",
            "pandas>=2",
            "librosa>=0.10",
            "editdistance",
            "h5py",
            "filelock",
            "PyYAML",
        ],
        "superb": [
            "asteroid>=0.7",  # s3prl's enhancement and separation import its metrics and losses; brings pesq and pystoi
            "pesq",  # compiled, so a C compiler and Python's headers are needed
            "pystoi",
            "catalyst>=22",  # speech_commands imports one sampler of it, for training on several GPUs
        ],
        "hf": ["transformers>=4.46,<5"],
        "analysis": ["scipy>=1.9", "scikit-learn>=1.3", "matplotlib>=3.7", "jinja2>=3.1"],
        "test": ["pytest>=8", "ruff>=0.9", "mypy>=1.14"],
    },
)
