"""Where the tokens come from: text the model writes itself, a local file, or a Hugging Face data set.

A corpus is one row of token ids: documents in order, the tokenizer's EOS between them. Its fingerprint is
known without reading or sampling all of it, so that a cached result costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kedit.covariance import store
from kedit.covariance.config import StatsConfig
from kedit.covariance.shipped_text import shipped_ids
from kedit.errors import KeditError
from kedit.forward import sampling
from kedit.model.lm import LM
from kedit.runtime.hub_dataset import hub_dataset
from kedit.runtime.textfile import flaw_of, regular_file, strict_json

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # (what, done, of how many)
Piece = tuple[str, bool]  # text, and whether a document begins with it

PIECE = 1 << 16  # characters of a document that are read at once
BLOCK = 256  # pieces that are tokenised at once, at most
SELF_LENGTH = 128  # tokens of one sampled text
SAMPLING = "writing text for statistics (once)"
WRITING = "%s writes %d tokens of text, over which statistics can be taken: once per model, kept in the cache"

# How the sampled texts begin: three words each, as encyclopaedic entries do. After openings of one word
# ("The", "When") the covariance is farther from that of real articles (docs/statistics.md).
OPENINGS = """\
The city of, The film was, The book was, The song is, The river flows, The company was, The museum is,
The village lies, He was born, She was born, He died in, It is located, It was built, In the early,
During the war, After the battle, The species is, The band released, The team won, The president of,
The king of, The capital of, The language of, The history of, The island is, The ship was, The church of,
The university of, The author of, The actor played, The album was, The game was, The battle of,
The mountain is, The bird is, The storm made, The town has, The railway line, The novel tells,
The mother of, According to the, Born in the, Known for his, As a child, At the age, In his career,
The players of, On the coast, They were married, She studied law, His father worked,
Scientists have found, The word comes, The bridge crosses, Many people think, This painting shows,
The school opened, Her first novel, People who speak, There are several, The election of, When the king,
A group of, Most of the"""
# So many of each, no fewer than its words are in any vocabulary: rows of one length share a batch.
OPENING_TOKENS = 3


def fingerprint(lm: LM, config: StatsConfig) -> str:
    """Which text `config` means, 20 hex digits: of a file's content, or of all that sampling depends on.

    Raises:
        KeditError: The file or data set does not exist.
    """
    if config.corpus == "self":
        parts = ["self", sampling.VERSION, lm.fingerprint, config.seed, config.tokens, SELF_LENGTH, OPENINGS]
        return _digest(json.dumps(parts))
    if config.corpus.startswith("hf:"):
        dataset, column = _hf_dataset(config.corpus)
        return _digest(json.dumps(["hf", dataset._fingerprint, column, config.seed]))
    with _open(config.corpus).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]


def load_ids(lm: LM, config: StatsConfig, folder: Path, progress: Progress | None = None) -> Tensor:
    """The first `config.tokens` tokens of the corpus, `[n]` int64 on the CPU; fewer where it is shorter.

    Args:
        lm: Model and tokenizer.
        config: Names the corpus.
        folder: Where sampled text is kept.
        progress: Told of the sampling.

    Raises:
        KeditError: The corpus cannot be read or is empty.
    """
    if config.corpus == "self":
        return _self_ids(lm, config, folder, progress)
    pieces = _pieces(config)
    front = [lm.tokenizer.bos_token_id] if lm.adds_bos else []
    ids: list[int] = []
    while len(ids) < config.tokens and (block := _block(pieces, config.tokens - len(ids))):
        texts = [text for text, _ in block]
        rows = lm.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for (_, begins), row in zip(block, rows, strict=True):
            ids += [*_between(lm, bool(ids)), *front, *row] if begins else row
    if not ids:
        raise KeditError(f"stats.corpus: {config.corpus} holds no text")
    lm.check_ids(ids := ids[: config.tokens], f"stats.corpus: {config.corpus}")
    return torch.tensor(ids)


def _block(pieces: Iterator[Piece], size: int) -> list[Piece]:
    """The next pieces, as many as `size` characters hold: few texts have more tokens. At once is twice as fast."""
    block: list[Piece] = []
    for piece in pieces:
        block.append(piece)
        size -= len(piece[0])
        if size <= 0 or len(block) == BLOCK:
            break
    return block


def load_lines(lm: LM, config: StatsConfig, folder: Path, limit: int, progress: Progress | None = None) -> list[str]:
    """The corpus as text: its lines in order, white space normalised, without blank ones.

    Args:
        lm: Model and tokenizer.
        config: Names the corpus; of "self" the text that the statistics of these options are taken over.
        folder: Where sampled text is kept.
        limit: Characters after which reading stops.
        progress: Told of the sampling.

    Raises:
        KeditError: The corpus cannot be read.
    """
    if config.corpus == "self":
        pieces = ((text, True) for text in _self_texts(lm, load_ids(lm, config, folder, progress)))
    else:
        pieces = _pieces(config)
    lines: list[str] = []
    size = 0
    for text, _ in pieces:
        lines += [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        size += len(text)
        if size >= limit:
            break
    return lines


def _self_texts(lm: LM, ids: Tensor) -> Iterator[str]:
    """Sampled text, document by document: EOS stands between them, and BOS may stand before."""
    special = set(lm.tokenizer.all_special_ids)
    document: list[int] = []
    for token in ids.tolist():
        if token not in special:
            document.append(token)
        elif document:
            yield lm.decode(document)
            document = []
    if document:
        yield lm.decode(document)


def _pieces(config: StatsConfig) -> Iterator[Piece]:
    """The text of a file or a data set, piece by piece."""
    return _hf_pieces(config) if config.corpus.startswith("hf:") else _file_pieces(config.corpus)


def _between(lm: LM, needed: bool) -> list[int]:
    """What stands between two documents: EOS, where the model has one."""
    return [lm.eos_id] if needed and lm.eos_id is not None else []


def sampled(lm: LM, config: StatsConfig, folder: Path) -> Path:
    """Where the text that the model writes for `corpus: self` is kept."""
    return folder / f"self-{config.tokens}-{fingerprint(lm, config)[:8]}.safetensors"


def _self_ids(lm: LM, config: StatsConfig, folder: Path, progress: Progress | None) -> Tensor:
    """Sampled text, made once and kept: it costs far more than the statistics themselves. Some ships with kedit."""
    key = {"model": lm.name, "fingerprint": lm.fingerprint, "corpus": fingerprint(lm, config)}
    path = sampled(lm, config, folder)
    if path.exists():
        tensors, card = store.read(path)
        store.check(path, card["key"], key)
        text, rows = tensors.get("ids"), lm.vocab_size
        sound = text is not None and text.dtype == torch.int32 and text.ndim == 1 and len(text) > 0
        if text is None or not sound or not bool((text >= 0).all() & (text < rows).all()):
            raise KeditError(f"{path} holds no text; delete it, it will be made again")
        return text.long()
    kept = shipped_ids(lm, key["corpus"], config.tokens)
    if kept is None:
        kept = write_ids(lm, config, progress)
    else:
        log.info("text that this model wrote, %d tokens, is shipped with kedit: it need not be written", len(kept))
    store.write(path, {"ids": kept.int()}, {"kind": "sampled text", "key": key})
    return kept


def write_ids(lm: LM, config: StatsConfig, progress: Progress | None = None) -> Tensor:
    """Let the model write the text of `corpus: self`, `[n]` int64; nothing is kept or looked up.

    Args:
        lm: The unedited model.
        config: Seed and number of tokens.
        progress: Told of the sampling.
    """
    length = min(SELF_LENGTH, lm.context_length)
    prompts = _prompts(lm, -(-config.tokens // (length - OPENING_TOKENS)))
    new = length - max(map(len, prompts))
    log.info(WRITING, lm.name, config.tokens)
    report = None if progress is None else (lambda done, total: progress(SAMPLING, done, total))
    rows = sampling.sample(lm, prompts, new, seed=config.seed, stop_at_eos=False, progress=report)
    ids: list[int] = []
    for row in rows:
        ids += _between(lm, bool(ids)) + row
    return torch.tensor(ids[: config.tokens])


def _prompts(lm: LM, n: int) -> list[list[int]]:
    """The openings in turn, in tokens; one row in 8 has BOS or EOS only and begins as the model likes."""
    bos = lm.tokenizer.bos_token_id
    front = [bos] if lm.adds_bos else []
    texts = [" ".join(text.split()) for text in OPENINGS.split(",")]
    full = [front + lm.tokenizer(text, add_special_tokens=False)["input_ids"][:OPENING_TOKENS] for text in texts]
    lm.check_ids([token for row in full for token in row], "stats.corpus: what sampled texts begin with")
    known = [token for token in (bos, lm.eos_id) if token is not None and token < lm.n_tokens]
    bare = front or known[:1] or full[0]
    return [full[i % len(full)] if i % 8 else bare for i in range(n)]


def _open(name: str) -> Path:
    try:
        return regular_file(name, "self, a text file, or hf:NAME")
    except KeditError as error:
        raise KeditError(f"stats.corpus: {error}") from None


def _file_pieces(name: str) -> Iterator[Piece]:
    """A text file is one document, cut at line ends; a .jsonl file holds one per line."""
    path = _open(name)
    if path.suffix == ".jsonl":
        yield from _jsonl_pieces(path)
        return
    begins = True
    for text in _blocks(path):
        if text.strip():
            yield text, begins
            begins = False


def _blocks(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            while lines := file.readlines(PIECE):
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise KeditError(f"stats.corpus: {path} is not UTF-8 text ({error.reason})") from None


def _jsonl_pieces(path: Path) -> Iterator[Piece]:
    number = 0
    for block in _blocks(path):
        for line in block.split("\n"):
            number += bool(line)
            if not line.strip():
                continue
            try:
                text = strict_json(line)["text"]
            except (ValueError, KeyError, TypeError):
                raise KeditError(
                    f'stats.corpus: record {number} of {path} is not a JSON object with a "text"'
                ) from None
            if (flaw := flaw_of(text)) is not None:
                raise KeditError(f"stats.corpus: record {number} of {path}: {flaw}")
            if isinstance(text, str) and text.strip():
                yield text, True


def _hf_dataset(corpus: str) -> tuple[Any, str]:
    """The data set that `hf:NAME[:CONFIG][:SPLIT][:COLUMN]` names, and the column of its text."""
    dataset, column = hub_dataset(corpus, "stats.corpus", "[:COLUMN]")
    column = column or "text"
    if column not in (dataset.column_names or ()):
        raise KeditError(f"stats.corpus: {corpus} has no column {column!r} but {dataset.column_names}")
    return dataset, column


def _hf_pieces(config: StatsConfig) -> Iterator[Piece]:
    """Documents in an order drawn from the seed, as data sets are often sorted."""
    dataset, column = _hf_dataset(config.corpus)
    for i in torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed)).tolist():
        text = dataset[i][column]
        if isinstance(text, str) and text.strip():
            yield text, True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]
