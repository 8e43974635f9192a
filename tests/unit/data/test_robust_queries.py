"""Robust queries: every rule by which variants are drawn, and that nothing leaks between their halves."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kedit.data import Records, read_records, read_robust
from kedit.data.passages import Passages
from kedit.data.robust_queries import KINDS, TEMPLATES_TEST, TEMPLATES_TRAIN, QueryConfig, with_variants
from kedit.data.scrambled import Unit, orders, parts_of, shuffled
from kedit.errors import KeditError
from kedit.model.lm import LM
from kedit.request import EditRecord, EditRequest, Probe, Variants
from tests.support.paths import FIXTURES
from tests.support.tiny_models import TEXT, TokenizerKind, tiny_lm

SUBJECTS = ("Danielle Darrieux", "Käthe Müller-Łoś", "東京 Tower", "Zoë 🚀 Ångström", "The Lantern Tower", "x")
PROMPTS = ("{} was born in", "The mother tongue of {} is", "Some say «{}» speaks", "({}) plays")


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_lm("llama", n_layers=2, context=512)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 lines of 8 words, each word its own; braces and headings that repeat."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    lines = [" ".join(f"{{w{line}x{i}}}" for i in range(8)) for line in range(120)]
    for i in range(0, 120, 10):
        lines[i] = "= Heading ="
    path.write_text("\n\n".join(lines))
    return str(path)


def a_record(case_id: str = "a", aliases: int = 0, subject: str = "Danielle Darrieux", **fields: Any) -> EditRecord:
    names = [f"Alias {i} of hers" for i in range(aliases)]
    request = EditRequest(case_id, "The mother tongue of {} is", subject, "Dutch", "French")
    probes = (
        Probe("rewrite", request.text, "Dutch", "French"),
        *(Probe("subject_rephrase", request.prompt.replace("{}", name), "Dutch", "French") for name in names),
    )
    return EditRecord(replace(request, **fields), probes, {"subject_aliases": names} if names else {})


def variants_of(lm: LM, record: EditRecord, **options: Any) -> Variants:
    wanted: dict[str, Any] = {"long_words": []} | options
    (result,) = with_variants(lm, [record], QueryConfig(**wanted))
    assert result.variants is not None
    return result.variants


@pytest.mark.parametrize("kind", ["bpe", "bpe_bos", "sentencepiece"])
@pytest.mark.parametrize("unit", ["token", "word", "character"])
def test_parts_are_the_subject(kind: TokenizerKind, unit: Unit) -> None:
    lm = tiny_lm("llama", kind=kind, n_layers=1)
    for subject in SUBJECTS:
        for prompt in PROMPTS:
            full = prompt.replace("{}", subject)
            parts = parts_of(lm, full, prompt.index("{}"), prompt.index("{}") + len(subject), unit)
            assert "".join(parts).strip() == subject
            assert all(part.strip() or unit == "character" for part in parts)
            for out in shuffled(parts, 8, Random(0)):
                letters = Counter(out.replace(" ", ""))
                assert letters == Counter(subject.replace(" ", "")), "a character was lost, split or marked"
                assert lm.decode(lm.tokenizer(out, add_special_tokens=False)["input_ids"]).strip() == out


def test_parts_are_the_tokens_of_the_prompt() -> None:
    lm = tiny_lm("gpt2")
    prompt, subject = "The mother tongue of {} is", "Danielle Darrieux"
    full, start = prompt.replace("{}", subject), prompt.index("{}")
    ids, spans = lm.offsets(full)
    own = [lm.decode([i]) for i, (a, b) in zip(ids, spans, strict=True) if a < start + len(subject) and b > start]
    assert parts_of(lm, full, start, start + len(subject)) == own
    assert len(own) > 2
    assert parts_of(lm, f"{subject} is", 0, len(subject))[0].startswith(" "), "the same at the beginning of a prompt"


@pytest.mark.parametrize(
    "parts", [["a"], ["a", "a"], ["a"] * 30, ["a", "b"], list("aab"), list("aabbccdd"), ["a"] * 40 + ["b"]]
)
def test_shuffles_end_and_are_distinct(parts: list[str]) -> None:
    for count in (1, 5, 10_000):
        found = shuffled(parts, count, Random(1))
        assert len(set(found)) == len(found) == min(count, orders(parts) - 1)
        assert "".join(parts) not in found
        assert all(Counter(text) == Counter("".join(parts)) for text in found)


def test_many_parts_are_sampled() -> None:
    parts = [f" p{i}" for i in range(12)]
    assert orders(parts) == math.factorial(12)
    found = shuffled(parts, 10, Random(0))
    assert len(set(found)) == 10
    twins = ["x"] * 300 + ["y"] * 300 + ["xy"]  # astronomically many orders
    assert len(shuffled(twins, 5, Random(0))) == 5


def test_texts_that_join_alike_count_once() -> None:
    found = shuffled(["ab", "a", "b"], 9, Random(0))
    assert sorted(found) == ["aabb", "abba", "baab", "baba"]  # a, b, ab reads like the original
    assert shuffled([" x", " y"], 9, Random(0), avoid=["y  x"]) == []


def test_shuffle_halves(lm: LM) -> None:
    assert variants_of(lm, a_record(subject="is"), shuffle_unit="word").shuffle_train == ()
    two = variants_of(lm, a_record(), shuffle_unit="word")
    assert (two.shuffle_train, two.shuffle_test) == (("Darrieux Danielle",), ())
    for count, sizes in ((10, (5, 5)), (7, (4, 3)), (0, (0, 0))):
        many = variants_of(lm, a_record(), shuffles=count)
        assert (len(many.shuffle_train), len(many.shuffle_test)) == sizes
        assert not set(many.shuffle_train) & set(many.shuffle_test)
        assert "Danielle Darrieux" not in many.shuffle_train + many.shuffle_test
    turned = a_record()
    turned.meta["subject_aliases"] = ["Darrieux  Danielle"]
    assert variants_of(lm, turned, shuffle_unit="word").shuffle_train == (), "it is one of the other names"


def test_aliases_are_split(lm: LM) -> None:
    names = [f"Alias {i} of hers" for i in range(10)]
    found = variants_of(lm, a_record(aliases=10))
    assert (found.paraphrase_train, found.paraphrase_test) == (tuple(names[:5]), tuple(names[5:]))
    found = variants_of(lm, a_record(aliases=10), paraphrases=5)
    assert (found.paraphrase_train, found.paraphrase_test) == (tuple(names[:3]), tuple(names[3:5]))
    messy = a_record()
    messy.meta["subject_aliases"] = ["danielle darrieux", "A", "a", " A ", "B", "C", "D", "", "E"]
    found = variants_of(lm, messy)
    assert (found.paraphrase_train, found.paraphrase_test) == (("A", "B", "C"), ("D", "E"))


@pytest.mark.parametrize("aliases", range(6))
def test_phrases_fill_up(lm: LM, aliases: int) -> None:
    (result,) = with_variants(lm, [a_record(aliases=aliases)], QueryConfig(long_words=[]))
    assert result.variants is not None
    train, test = result.variants.paraphrase_train, result.variants.paraphrase_test
    assert len(train) + len(test) == max(4, aliases)
    assert len(train) - len(test) in (0, 1)
    assert not set(train) & set(test)
    real = [[name for name in half if name.startswith("Alias")] for half in (train, test)]
    assert (len(real[0]), len(real[1])) == ((aliases + 1) // 2, aliases // 2)
    expected = "templates" if not aliases else "aliases+templates" if aliases < 4 else "aliases"
    assert result.meta["variants"] == expected
    assert "variants" not in a_record(aliases=aliases).meta
    assert not set(TEMPLATES_TRAIN) & set(TEMPLATES_TEST)


def test_phrases_suit_the_prompt(lm: LM) -> None:
    def all_names(prompt: str) -> str:
        seeds = (variants_of(lm, a_record(prompt=prompt), seed=seed) for seed in range(30))
        return "\n".join(name for found in seeds for name in (*found.paraphrase_train, *found.paraphrase_test))

    inner, first, after_the = all_names("Rain in {} is"), all_names("{} is"), all_names("The {} is")
    for template in (*TEMPLATES_TRAIN, *TEMPLATES_TEST):
        filled = template.replace("{}", "Danielle Darrieux")
        assert filled in inner
        assert filled[0].upper() + filled[1:] in first
        assert filled.removeprefix("the ") in after_the
    assert "the " not in after_the.replace("(the ", "")


def test_a_draw_depends_on_record_and_seed_alone(lm: LM, text: str) -> None:
    records = [a_record(str(i), aliases=i % 3) for i in range(6)]
    config = QueryConfig(long_words=[20], corpus=text)
    whole = with_variants(lm, records, config)
    assert with_variants(lm, records, config) == whole
    assert with_variants(lm, records[::-1], config) == whole[::-1]
    assert with_variants(lm, records[3:4], config) == whole[3:4]
    assert with_variants(lm, whole, config) == whole, "variants are replaced, not added"
    assert len({record.variants for record in whole}) == 6
    other = with_variants(lm, records, replace(config, seed=1))
    assert all(a.variants != b.variants for a, b in zip(whole, other, strict=True))
    fewer = with_variants(lm, records, replace(config, shuffles=2, train_long=1))
    for a, b in zip(whole, fewer, strict=True):
        assert a.variants is not None
        assert b.variants is not None
        assert a.variants.long_test == b.variants.long_test
        assert a.variants.paraphrase_test == b.variants.paraphrase_test


def test_long_texts(lm: LM, text: str) -> None:
    config = QueryConfig(long_words=[40, 12], long_tokens=[30], long_contexts=2, train_long=3, corpus=text)
    results = with_variants(lm, [a_record(str(i)) for i in range(20)], config)
    train: set[str] = set()
    test: set[str] = set()
    for record in results:
        assert record.variants is not None
        for texts, seen, count in ((record.variants.long_train, train, 3), (record.variants.long_test, test, 2)):
            assert len(texts) == len(set(texts)) == 3 * count
            lengths = [len(long.split()) for long in texts]
            assert lengths[: 2 * count] == [40] * count + [12] * count
            for long in texts:
                assert not set("{}\n") & set(long)
                assert "  " not in long
                seen.update(long.split())
            short = [len(lm.tokenizer(long, add_special_tokens=False)["input_ids"]) for long in texts[2 * count :]]
            assert all(n <= 30 for n in short)
        asked = [probe for probe in record.probes if probe.kind == "long_context"]
        assert [probe.text for probe in asked] == [f"{t} {record.request.text}" for t in record.variants.long_test]
    assert not (train & test) - {"=", "Heading"}, "what trains on one record tests another"
    assert len(train) > 100


def test_long_texts_are_cut_to_the_context(text: str, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("gpt2", context=80)
    with caplog.at_level("WARNING"):
        (result,) = with_variants(lm, [a_record(aliases=4)], QueryConfig(corpus=text, evaluate_train_long=True))
    assert "6 long texts were cut to fit into the context of 80 tokens" in caplog.text
    asked = [probe for probe in result.probes if probe.kind.startswith("long_context")]
    assert len(asked) == 6
    for probe in asked:
        assert 40 < len(lm.encode(f"{probe.text} {probe.answer}")) <= 80
        assert probe.text.split()[0].startswith("w")


def test_own_text_of_the_model() -> None:
    lm = tiny_lm("gpt2", n_layers=1, d_model=16, d_ff=40)
    config = QueryConfig(long_words=[10])
    (result,) = with_variants(lm, [a_record()], config)
    assert result.variants is not None
    assert len(result.variants.long_train) == 5
    assert with_variants(lm, [a_record()], config) == [result]


def test_corpus_that_is_too_short(lm: LM, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("One line.\n{ }\n")
    with pytest.raises(KeditError, match=r"data\.queries\.corpus: .* two different lines"):
        with_variants(lm, [a_record()], QueryConfig(corpus=str(tmp_path / "one.txt")))
    with pytest.raises(KeditError, match=r"data\.queries\.corpus: .*: no such file"):
        with_variants(lm, [a_record()], QueryConfig(corpus=str(tmp_path / "none.txt")))
    passages = Passages(lm, TEXT.splitlines())
    assert not set(passages.train) & set(passages.test)
    assert len(passages.draw(passages.train, 99, Random(0), 5)) <= len(passages.train)


def test_probes(lm: LM, text: str) -> None:
    (result,) = with_variants(lm, [a_record(aliases=10)], QueryConfig(corpus=text, long_words=[9], train_long=2))
    counts = Counter(probe.kind for probe in result.probes)
    assert counts == {
        "rewrite": 1, "paraphrase_id": 5, "paraphrase_ood": 5, "shuffle_id": 5, "shuffle_ood": 5, "long_context": 1,
    }  # fmt: skip
    assert all((probe.answer, probe.rival) == ("Dutch", "French") for probe in result.probes)
    everything = QueryConfig(corpus=text, long_words=[9], train_long=2, evaluate_train_long=True)
    (result,) = with_variants(lm, [a_record(aliases=10)], everything)
    assert Counter(probe.kind for probe in result.probes)["long_context_id"] == 2
    assert everything.kinds == KINDS
    assert QueryConfig(paraphrases=1, shuffles=0, long_words=[]).kinds == ("paraphrase_id",)
    (nothing,) = with_variants(lm, [a_record()], QueryConfig(paraphrases=0, shuffles=0, long_words=[]))
    assert nothing.variants == Variants()
    assert nothing.meta == {}


@pytest.mark.parametrize(
    ("option", "value"), [("paraphrases", -1), ("shuffles", -2), ("long_words", [0]), ("long_tokens", [9, -1])]
)
def test_bad_options(option: str, value: Any) -> None:
    with pytest.raises(KeditError, match=rf"data\.queries\.{option}: "):
        QueryConfig(**{option: value})


def test_readers_files(lm: LM) -> None:
    for records in (read_robust(FIXTURES / "robust.json"), read_records(FIXTURES / "records.jsonl")):
        for record in with_variants(lm, records, QueryConfig(long_words=[])):
            v = record.variants
            assert v is not None
            train = {name.casefold() for name in (*v.paraphrase_train, *v.shuffle_train)}
            test = {name.casefold() for name in (*v.paraphrase_test, *v.shuffle_test)}
            assert train
            assert test
            assert not train & test
            assert record.request.named().casefold() not in train | test


class TestDataModule:
    """`queries` of `EditData`."""

    OWN = str(FIXTURES / "records.jsonl")

    def prepared(self, lm: LM, text: str, seed: int = 0, **options: Any) -> Records:
        data = Records(self.OWN, queries=QueryConfig(long_words=[8], corpus=text, seed=seed), **options)
        data.prepare(lambda records: records, lambda: lm)
        return data

    def test_fingerprint_covers_the_variants(self, lm: LM, text: str) -> None:
        prints = [self.prepared(lm, text, seed).fingerprint for seed in (0, 0, 1)]
        assert prints[0] == prints[1] != prints[2]
        assert Records(self.OWN).fingerprint not in prints

    def test_kinds_are_chosen(self, lm: LM, text: str) -> None:
        data = self.prepared(lm, text, probe_kinds=["rewrite", "shuffle_ood", "long_context"], max_probes=2)
        assert set(data.describe()["probes"]) == {"rewrite", "shuffle_ood", "long_context"}
        counts = [Counter(probe.kind for probe in record.probes) for record in data.records]
        assert max(count["shuffle_ood"] for count in counts) == 2
        assert all(record.variants and len(record.variants.shuffle_test) > 2 for record in data.records)
        assert data.describe()["queries"]["shuffles"] == 10

    def test_kind_that_is_gone_is_named(self, lm: LM, text: str) -> None:
        assert "subject_rephrase" not in self.prepared(lm, text).describe()["probes"]
        for kind in ("subject_rephrase", "long_context_id"):
            with pytest.raises(KeditError, match=rf"data\.probe_kinds: .* has no {kind} probes"):
                self.prepared(lm, text, probe_kinds=[kind])

    def test_after_the_cut_only(self, lm: LM, text: str) -> None:
        data = Records(self.OWN, queries=QueryConfig(long_words=[8], corpus=text), known=True, skip=1, limit=2)
        data.prepare(lambda records: records, lambda: lm)
        whole = self.prepared(lm, text)
        assert data.records == whole.records[1:3]
        with pytest.raises(ValueError, match="queries need a model"):
            Records(self.OWN, queries=QueryConfig()).prepare(lambda records: records)
