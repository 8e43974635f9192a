"""SmolLM2-135M-Instruct asked in a chat: kedit's tokens are its template's, and an edit changes what it says there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kedit
from kedit.cli import main
from kedit.data import read_facts
from kedit.forward.binding import load_lm
from kedit.model.chat import chat_frame
from kedit.model.lm import LM, LMConfig
from kedit.model.tokenization import encode, encode_subject
from tests.support.device import ACCELERATOR

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def lm() -> LM:
    return load_lm(LMConfig("smollm2-135m"))


@pytest.mark.parametrize("system", [None, "Answer with one word.", ""])
def test_tokens_are_those_of_the_template(lm: LM, system: str | None) -> None:
    chat = lm.in_chat(chat_frame(lm, system))
    before = [] if system is None else [{"role": "system", "content": system}]
    for i, record in enumerate(read_facts("test")[:40]):
        r, context = record.request, ["{}", "The first time, in 1853. {}"][i % 2]
        tokens = encode_subject(chat, r.prompt, r.named(), r.target_new, context)
        asked = [*before, {"role": "user", "content": context.replace("{}", r.text)}]
        prompt = lm.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        answered = [*asked, {"role": "assistant", "content": r.target_new}]
        whole = lm.tokenizer.apply_chat_template(answered, return_dict=False)
        assert list(tokens.ids[: tokens.n_prompt]) == prompt
        assert list(tokens.ids) == whole[: len(tokens.ids)]
        assert lm.decode(whole[len(tokens.ids) :]) == "<|im_end|>\n"
        assert lm.decode(tokens.target) == r.target_new
        assert lm.decode(tokens.ids[tokens.subject_first : tokens.subject_last + 1]).strip() == r.subject
        assert encode(chat, context.replace("{}", r.text), r.target_new).ids == tokens.ids


def test_an_edit_changes_the_answer_in_the_chat(lm: LM, tmp_path: Path) -> None:
    main(
        ["fit", "--config", "configs/rome_smollm2.yaml", "--data.init_args.limit=1", "--data.init_args.known=false",
         "--data.init_args.chat=true", "--model.init_args.mom2_adjustment=false",
         f"--trainer.accelerator={ACCELERATOR}",
         "--model.init_args.contexts.lengths=[[5, 3]]", f"--run.root={tmp_path}", "--run.name=chat"]
    )  # fmt: skip
    (line,) = (tmp_path / "chat" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    delta, card = kedit.load_delta(tmp_path / "chat" / "deltas" / row["case_id"], lm)
    assert card["chat"]["end"] == "<|im_end|>"
    request = row["request"]
    messages = [{"role": "user", "content": request["prompt"].replace("{}", request["subject"])}]
    ids = lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)

    def said() -> str:
        with torch.no_grad():
            model: Any = lm.model
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        return lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    before = said()
    with kedit.edited(lm.model, delta):
        assert said().startswith(request["target_new"])
    assert said() == before
    assert not before.startswith(request["target_new"])
