"""The text of SmolLM2's statistics that ships with kedit: make it, or check the file that is there.

    python benchmarks/shipped_corpus.py                     # the file is sound and of this kedit's sampling
    python benchmarks/shipped_corpus.py --sample            # and is what the model writes here (minutes)
    python benchmarks/shipped_corpus.py --statistics FOLDER # and gives the statistics in this cache, bit for bit
    python benchmarks/shipped_corpus.py --make              # write it anew (minutes)

Other machines may round otherwise, and then another text comes out of `--sample`: the words of one draw differ, and all
that follows. That is no fault of the file. Fails where a check does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm
from kedit.covariance import StatsConfig, corpus, covariances, shipped_text, store
from kedit.forward import sampling
from kedit.model.lm import LM
from kedit.runtime import checksum


def path_of(lm: LM) -> Path:
    """Where the text of a model ships."""
    return shipped_text.FOLDER / f"{lm.name}-{lm.fingerprint}.safetensors"


def make(lm: LM, config: StatsConfig) -> None:
    """Let the model write the text, and keep it."""
    about = {
        "seed": config.seed,
        "tokens": config.tokens,
        "length": corpus.SELF_LENGTH,
        "temperature": 1.0,
        "top_k": None,
        "version": sampling.VERSION,
    }
    shipped_text.ship(path_of(lm), corpus.write_ids(lm, config), lm, corpus.fingerprint(lm, config), about)


def same_statistics(lm: LM, config: StatsConfig, cache: Path) -> None:
    """Statistics over the file, taken in an empty cache, equal those that `cache` holds."""
    for old in sorted(store.folder(cache, lm).glob("*/*.down_proj.safetensors")):
        kept, card = store.read(old)
        layer = int(card["key"]["module"].split(".")[2])
        with tempfile.TemporaryDirectory() as scratch:
            mean = covariances(lm, [layer], config, Path(scratch))[layer].mean
        same = torch.equal(mean, kept["mean"])
        print(f"layer {layer}: {'the same bits' if same else 'OTHER NUMBERS'} as {old.name}")
        if not same:
            raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--make", action="store_true", help="write the file anew")
    parser.add_argument("--sample", action="store_true", help="compare it with what the model writes here")
    parser.add_argument("--statistics", type=Path, help="compare what comes of it with a cache of kedit's")
    args = parser.parse_args()
    lm, config = get_lm(args.model, "float32", "cpu"), StatsConfig()
    if args.make:
        make(lm, config)
    path = path_of(lm)
    ids = shipped_text.shipped_ids(lm, corpus.fingerprint(lm, config), config.tokens)
    if ids is None:
        raise SystemExit(f"{path}: there is none, or it is damaged, or of another kedit's sampling")
    size = path.stat().st_size
    print(f"{path.name}: {len(ids)} tokens, {size} bytes, sha256 {checksum.of_file(path)}")
    if args.sample:
        same = torch.equal(ids, corpus.write_ids(lm, config))
        print("the model writes the same text here" if same else "the model writes ANOTHER text here")
        raise SystemExit(not same)
    if args.statistics is not None:
        same_statistics(lm, config, args.statistics)


if __name__ == "__main__":
    main()
