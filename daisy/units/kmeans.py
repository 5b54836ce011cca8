"""Read k-means centres from the files that people publish: NumPy, safetensors, torch, and fairseq's joblib."""

from __future__ import annotations

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from daisy.errors import UsageError

NAMES = ("cluster_centers_", "cluster_centers", "centers", "centres", "centroids", "C")
"""Names of centres, as tensors or attributes: those of scikit-learn, speechbrain, textless-lib and others."""


def read_kmeans(path: str | Path, *, allow_pickle: bool = False) -> Tensor:
    """Read the centres of a k-means.

    Args:
        path: path of a .npy file of centres; a .npz, .safetensors or torch file of one array, or with one named as in
            `NAMES`; or a pickled scikit-learn object, as fairseq's learn_kmeans.py writes it with joblib.
        allow_pickle: read pickled objects, which can run code: only for files you trust.

    Returns:
        (K, D) float32 centres.

    Raises:
        UsageError: where there is no such file, it holds no centres, or it needs unpickling that was not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        if path.suffix == ".npy":
            return _find_centres(path, numpy.load(path, allow_pickle=False))
        if path.suffix == ".npz":
            with numpy.load(path, allow_pickle=False) as arrays:
                return _find_centres(path, dict(arrays))
        if path.suffix == ".safetensors":
            return _find_centres(path, load_file(path))
        with contextlib.suppress(pickle.UnpicklingError, RuntimeError, EOFError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles that it did not write: those are not read here
            return _find_centres(path, torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, ValueError, EOFError, SafetensorError, zipfile.BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: no file of k-means centres ({first_line})") from None
    if not allow_pickle:
        raise UsageError(
            f"{path}: holds pickled Python objects; unpickling can run code, so only if you trust where it comes from",
            remedy="allow_pickle",
        )
    return _find_centres(path, _unpickle(path))


def _unpickle(path: Path) -> Any:
    try:
        import joblib
    except ModuleNotFoundError:
        raise UsageError(f"{path}: needs scikit-learn and joblib: pip install 'daisy-speech[analysis]'") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's, about objects of older versions: centres are an array
            return joblib.load(path)
    except ModuleNotFoundError as error:
        raise UsageError(f"{path}: is an object of {error.name}, which is not installed") from None
    except Exception as error:  # a damaged pickle can raise anything
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: cannot be unpickled ({first_line[:120]})") from None


def _find_centres(path: Path, content: Any) -> Tensor:
    """Find the centres in the content of a file."""
    if isinstance(content, Mapping):
        named = [content[name] for name in NAMES if name in content]
        arrays = [value for value in content.values() if getattr(value, "ndim", 0) == 2]
        content = named[0] if named else arrays[0] if len(arrays) == 1 else None
    elif not isinstance(content, numpy.ndarray | Tensor):
        content = next((getattr(content, name) for name in NAMES if hasattr(content, name)), None)
    if isinstance(content, numpy.ndarray):
        content = torch.from_numpy(content) if content.dtype.kind == "f" else None
    if not isinstance(content, Tensor) or content.ndim != 2 or not content.is_floating_point() or not len(content):
        raise UsageError(f"{path}: holds no k-means centres, a row of floats for each unit")
    return content.float().contiguous()
