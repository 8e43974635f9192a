"""`covariances`: what is cached is read, what is missing is computed in one pass and kept."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock, Timeout

from kedit.covariance import corpus, store
from kedit.covariance.collect import collect, default_batch_tokens, name_layers
from kedit.covariance.config import StatsConfig
from kedit.covariance.corpus import Progress
from kedit.covariance.matrix import Covariance
from kedit.errors import KeditError
from kedit.model import fingerprint as weights
from kedit.model.architecture import check_layers
from kedit.model.lm import LM
from kedit.runtime import distributed
from kedit.runtime.cache import cache_dir

log = logging.getLogger(__name__)

WHAT_FOR = """\
statistics of %s over %d tokens of %s: methods need them so that an edit leaves other texts alone.
Once per model and layer, kept in the cache"""
FEW = 4  # tokens per dimension below which C is worth a warning (docs/statistics.md)


def covariances(
    lm: LM,
    layers: Sequence[int],
    config: StatsConfig,
    cache: Path | None = None,
    progress: Progress | None = None,
    save_seconds: float = 60.0,
) -> dict[int, Covariance]:
    """Second moment of the keys of each layer, from the cache or from one pass over the text.

    Another run that needs the same waits for this one; the processes of one run take turns at the text. A run that
    was killed goes on where its last save was and ends with the same bits.

    Args:
        lm: The unedited model.
        layers: Layers, in any order.
        config: Text, number of tokens, precision, ridge.
        cache: kedit's cache folder; None: the user's (`kedit.runtime.cache.cache_dir`).
        progress: Called with (what, done, of how many) during long work.
        save_seconds: Least time between two saves of an unfinished pass.

    Returns:
        One `Covariance` per layer, in the order of `layers`, on the CPU.

    Raises:
        KeditError: A layer that does not exist, a corpus that cannot be read, a foreign or damaged file in
            the cache, or a model that was edited since it was loaded.
    """
    check_layers(lm.arch, layers)
    base = store.folder(cache or cache_dir(), lm)
    run = _run_key(lm, config)
    keys = {layer: {**run, "module": lm.arch.path("mlp_out", layer)} for layer in layers}
    found = _cached(lm, keys, base, config)
    if not distributed.all_true(len(found) == len(keys)):
        with _locked(base, lm) if distributed.is_main() else nullcontext():
            found |= _cached(lm, _rest(keys, found), base, config)
            missing = distributed.from_first(lambda: sorted(_rest(keys, found)))
            if missing:
                found |= _compute(lm, missing, keys, base, config, progress, save_seconds)
            found |= _cached(lm, _rest(keys, found), base, config)  # which the first process has found meanwhile
    for layer in layers:
        _report(layer, found[layer], config)
    return {layer: found[layer] for layer in layers}


def corpus_lines(
    lm: LM, config: StatsConfig, limit: int, cache: Path | None = None, progress: Progress | None = None
) -> list[str]:
    """The text that statistics are taken over, as lines (see `kedit.covariance.corpus.load_lines`).

    Text that the model has to write itself is written once and kept, for this and for the statistics.

    Raises:
        KeditError: The corpus cannot be read, or the cache cannot be written.
    """
    base = store.folder(cache or cache_dir(), lm)
    if config.corpus != "self" or corpus.sampled(lm, config, base).exists():  # then there is nothing to write
        return corpus.load_lines(lm, config, base, limit)
    with _locked(base, lm):
        return corpus.load_lines(lm, config, base, limit, progress)


def _run_key(lm: LM, config: StatsConfig) -> dict[str, Any]:
    return {
        "model": lm.name,
        "fingerprint": lm.fingerprint,
        "corpus": corpus.fingerprint(lm, config),
        "tokens": config.tokens,
        "sequence_length": min(config.sequence_length, lm.context_length),
        "dtype": config.dtype,
    }


def _rest(keys: dict[int, dict[str, Any]], found: dict[int, Covariance]) -> dict[int, dict[str, Any]]:
    return {layer: key for layer, key in keys.items() if layer not in found}


def _cached(lm: LM, keys: dict[int, dict[str, Any]], base: Path, config: StatsConfig) -> dict[int, Covariance]:
    paths = {layer: store.layer_path(base, key) for layer, key in keys.items()}
    return {
        layer: store.read_covariance(path, keys[layer], store.key_width(lm, layer), config.ridge)
        for layer, path in paths.items()
        if path.exists()
    }


def _compute(
    lm: LM,
    layers: list[int],
    keys: dict[int, dict[str, Any]],
    base: Path,
    config: StatsConfig,
    progress: Progress | None,
    save_seconds: float,
) -> dict[int, Covariance]:
    """One pass for `layers`; every result is written before any is returned."""
    if weights.fingerprint(lm.model) != lm.fingerprint:
        raise KeditError(
            f"{lm.name} was edited since it was loaded, so its statistics cannot be taken now; "
            "take them before the first edit (kedit stats)"
        )
    ids = distributed.from_first(lambda: corpus.load_ids(lm, config, base, progress))
    batch = config.batch_tokens or default_batch_tokens(lm.device)
    run = {**keys[layers[0]], "module": [keys[i]["module"] for i in layers], "batch": batch}
    nameless = {name: value for name, value in run.items() if name != "model"}
    digest = hashlib.sha256(json.dumps(nameless).encode()).hexdigest()[:12]
    of = f"-{distributed.rank()}-of-{distributed.world_size()}" if distributed.world_size() > 1 else ""
    partial = store.layer_path(base, keys[layers[0]]).with_name(f"partial-{digest}{of}.safetensors")
    dtype = getattr(torch, config.dtype)
    length = run["sequence_length"]
    log.info(WHAT_FOR, name_layers(layers), len(ids), _source(config.corpus))
    state = collect(lm, layers, ids, length, batch, dtype, partial, run, progress, save_seconds)
    result = {}
    for layer in layers:
        moment = state.moments[layer]
        card = {
            "key": keys[layer],
            "corpus": config.corpus,
            "convergence": state.convergence[layer],
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        path = store.layer_path(base, keys[layer])
        kept = functools.partial(store.spectrum_beside, path, keys[layer])
        result[layer] = Covariance(moment.mean().cpu(), moment.count, config.ridge, card, kept)
        if distributed.is_main():
            store.save_covariance(path, result[layer])
    partial.unlink(missing_ok=True)
    return result


def _source(name: str) -> str:
    """A corpus in words."""
    return "text that the model wrote" if name == "self" else name


def _locked(base: Path, lm: LM) -> FileLock:
    """The lock of one model's statistics; says so where another process holds it."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        (base / store.marker(lm)).touch()
        lock = FileLock(base / "lock")
        try:
            lock.acquire(timeout=0).lock.release()
        except Timeout:
            log.info("another process computes statistics of this model; waiting for it (%s)", base)
        return lock
    except OSError as error:
        raise KeditError(f"{base}: cannot be written ({error}); set KEDIT_CACHE to another folder") from None


def _report(layer: int, cov: Covariance, config: StatsConfig) -> None:
    half, last = [{}, {}, *cov.card.get("convergence", [])][-2:]
    if "unseen" in last and "tokens" in half:
        log.info(
            "layer %d: C changed by %.1f %% between %d and %d tokens; keys of unseen text look %.2f times as "
            "unusual as those of the text itself (1 is best); ridge %g",
            layer, 100 * last["change"], half["tokens"], cov.count, last["unseen"] or float("nan"), cov.ridge,
        )  # fmt: skip
    if cov.count < config.tokens:
        log.warning(
            "layer %d: %s holds only %d tokens of the %d asked for (stats.tokens); all of them were used",
            layer, config.corpus, cov.count, config.tokens,
        )  # fmt: skip
    if cov.count < FEW * cov.d_in:
        log.warning(
            "layer %d: %d tokens are few for keys of width %d; take at least %d (stats.tokens)",
            layer, cov.count, cov.d_in, FEW * cov.d_in,
        )  # fmt: skip
