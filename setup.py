"""Metadata, dependencies and extras; the build system and the tools' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "daisy" / "version.py").read_text(), re.M).group(1)

GENUINE = 'python_version < "3.11"'  # fairseq 0.12.2 has mutable dataclass defaults, which Python 3.11 rejects
FORK = 'python_version >= "3.11"'
# fairseq and s3prl need older versions: from torch 2.6, torch.load refuses the Python objects in their checkpoints.
HOSTS = ["torch<2.6", "torchaudio<2.6", "numpy<2"]
UNITS_AND_ROOMS = ["scikit-learn>=1.3", "kaldi-native-fbank>=1.20", "pyroomacoustics>=0.10"]

setup(
    name="daisy-speech",
    version=VERSION,
    description="Early exit from speech representation models: HuBERT that stops at the layer each recording needs",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    author="The daisy authors",
    project_urls={"Paper": "https://arxiv.org/abs/2406.05464"},
    keywords=["speech", "HuBERT", "early exit", "self-supervised learning", "fairseq", "s3prl"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: MIT License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["daisy", "daisy.*", "fairseq_plugins", "fairseq_plugins.*", "s3prl_upstream"]),
    package_data={
        "daisy": ["py.typed", "assets/*", "assets/demo/*", "assets/templates/*", "assets/huggingface/*"],
        "fairseq_plugins": ["config/**/*.yaml", "pretrain.sh"],
    },
    entry_points={"console_scripts": ["daisy = daisy.cli:main", "daisy-s3prl = s3prl_upstream.run_downstream:main"]},
    install_requires=[
        "torch>=2.5",
        "numpy>=1.26",
        "scipy>=1.9",
        "soundfile>=0.13",  # its wheels include a libsndfile that reads Ogg Opus and MP3
        "soxr>=0.5",
        "safetensors>=0.4",
        "typer>=0.20",  # the command line only
        "rich>=13",
    ],
    extras_require={
        "fairseq": [
            *HOSTS,
            f"fairseq==0.12.2; {GENUINE}",
            f"fairseq-fixed==0.12.3.1; {FORK}",
            "tensorboardX>=2.6",
            *UNITS_AND_ROOMS,
        ],
        "s3prl": [
            *HOSTS,
            "s3prl==0.4.18",
            "huggingface_hub>=0.23,<1",  # run_downstream imports Repository and HfFolder, removed in 1.0
            "tensorboardX>=2.6",
            "pandas>=2",
            "librosa>=0.10",
            "editdistance",
            "h5py",
            "PyYAML",
        ],
        "superb": [
            "asteroid>=0.7",  # s3prl's enhancement and separation import its metrics and losses; with pesq and pystoi
            "pesq",  # compiled, so a C compiler and Python's headers are needed
            "pystoi",
            "catalyst>=22",  # speech_commands imports a sampler from it, for training on several GPUs
        ],
        "hf": ["transformers>=4.46"],
        # torchaudio has the Conformer's layers and calls flashlight's beam search, whose wheels include KenLM.
        "recognition": [
            "torchaudio>=2.5",
            "jiwer>=4",
            "sentencepiece>=0.2",
            'flashlight-text>=0.0.7; sys_platform == "linux" and python_version < "3.12"',
        ],
        # Ray runs workers on several machines; simpy is the simulator of model-distributed inference.
        "ray": ["ray>=2.44,<3", "simpy>=4", "PyYAML"],
        "parquet": ["pyarrow>=15"],
        "lhotse": ["lhotse>=1.33"],
        "storage": ["fsspec>=2024.2", "s3fs>=2024.2"],  # results in S3
        "ffmpeg": ["av>=14"],  # MP4, WebM and other formats that libsndfile does not read; its wheels include FFmpeg
        "analysis": ["matplotlib>=3.7", "jinja2>=3.1", *UNITS_AND_ROOMS],
        # mkdocstrings 1.0 cannot construct the highlighter of pymdown-extensions 12.
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=1", "pymdown-extensions<12"],
        "dev": ["pre-commit>=4", "pre-commit-hooks>=5"],
        "test": [
            *("pytest>=8", "pytest-xdist>=3", "hypothesis>=6.100", "ruff>=0.9", "mypy>=1.14"),
            # moto's own extra "server" installs an antlr4 that conflicts with fairseq's hydra-core.
            *("moto[s3]>=5", "flask", "flask-cors", "webdataset>=0.2.86"),
            *("nbclient>=0.10", "ipykernel>=6.29"),  # run docs/tour.ipynb
        ],
    },
)
