"""The plan of a run: peaks beside those that are measured, what fits, the command and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.cli.main import main
from kedit.evaluation.drift import believed, divergences
from kedit.evaluation.perplexity import perplexities, windows_of
from kedit.forward.replay import Site
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization, WeightDecay
from kedit.keyvalue.contexts import ContextConfig
from kedit.keyvalue.lane_memory import measured_lanes
from kedit.methods.pac import TraceConfig, labelled, requests_of
from kedit.methods.pac.tracing.sites import sites
from kedit.methods.pac.tracing.trace import trace
from kedit.methods.rep import AdapterConfig, AdapterTrainer
from kedit.methods.rep.adapter_phase import AdapterPhase
from kedit.plan import passes
from kedit.plan.adapters import adapter_bytes, usual_task
from kedit.plan.lengths import Lengths, lengths_of
from kedit.plan.passes import RowGroup
from kedit.plan.phases import Phase, ScoringPlan, TextPlan
from kedit.plan.plan import GIB, _fit, total
from kedit.plan.shape import shape_of_config
from kedit.plan.tracing import trace_bytes
from kedit.plan.value_rows import value_rows
from kedit.request import EditRecord, EditRequest
from kedit.runtime.live_peak import LivePeak
from tests.support.tiny_models import save_tiny, tiny_lm

REQUESTS = [EditRequest(str(i), "The capital of {} is located in", f"Rome {i}", "Tokyo") for i in range(3)]
CONTEXTS = ["{}", "The meeting was moved. {}", "You can see it. {}"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("site", [Site("mlp", 1), Site("output", 2)])
def test_a_step_of_v_star_is_planned(family: str, site: Site) -> None:
    lm = tiny_lm(family, n_layers=8, d_model=64, d_ff=160)
    with LivePeak([*lm.model.parameters(), *lm.model.buffers()]) as live:
        objective = ValueObjective(lm, REQUESTS, CONTEXTS, [site], (NLL(), KLDivergence(0.1), WeightDecay(0.1)))
        ValueOptimization(objective).loss().backward()
    shape = shape_of_config(lm.model.config, torch.float32, lm.tokenizer, "tiny")
    groups = [RowGroup(len(g.hidden), g.hidden.shape[1], g._prefix.width) for g in objective.replay.groups]
    planned = passes.value_step(shape, 3, groups, len(objective.labels.row), site.first)
    assert planned == pytest.approx(live.peak, rel=0.15)


def test_the_rows_of_a_step_are_those_of_a_run() -> None:
    lm = tiny_lm("llama", n_layers=4, d_model=256, d_ff=640)
    requests = [
        EditRequest("1", "{} is", "Rome", "Tokyo"),
        EditRequest("2", "{} is, as everybody knows who has been there, the capital of", "Paris", "Peru"),
        EditRequest("3", "The capital of {} is", "Norway", "Bergen"),
    ]
    shape = shape_of_config(lm.model.config, torch.float32, lm.tokenizer, "tiny")
    lengths = lengths_of(lm, [EditRecord(request, ()) for request in requests])
    contexts = ContextConfig(texts=["You can see it. {}", "He said. {}"])
    found = value_rows(shape, lengths, 3, contexts, gpu=False)
    terms = (NLL(), KLDivergence(0.1))
    objective = ValueObjective(lm, requests, ["{}", *(contexts.texts or ())], [Site("mlp", 1)], terms)
    groups = objective.replay.groups
    assert [(group.rows, group.suffix) for group in found] == [tuple(group.hidden.shape[:2]) for group in groups]
    assert len(found) > 1


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("config", [AdapterConfig(), AdapterConfig(gate="mlp", dropout=0.1), AdapterConfig(rank=4)])
def test_adapters_are_planned(lanes: int, config: AdapterConfig) -> None:
    """Keys with numbers take what those without are planned with."""
    with LivePeak(()) as live:
        tasks = [usual_task(config, 96, i, "cpu") for i in range(lanes)]
        phase = AdapterPhase(AdapterTrainer(tasks, config))
        adam = phase.optimizer()
        for _ in range(3):
            adam.zero_grad()
            phase.loss().backward()
            adam.step()
    assert adapter_bytes(config, 96, lanes)[0] == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_a_trace_is_planned(share: float) -> None:
    """With spans of one layer, and with one graph of all."""
    lm = tiny_lm("llama", n_layers=8, d_model=64, d_ff=160)
    shape = shape_of_config(lm.model.config, torch.float32, lm.tokenizer, "tiny")
    records = [EditRecord(request, ()) for request in REQUESTS]
    batch = labelled(lm, [one.text for one in requests_of(lm, records, "forced")], True)
    config = TraceConfig(memory=share)
    with LivePeak([*lm.model.parameters(), *lm.model.buffers()]) as live:
        trace(lm, [batch], config)
    found = sites(shape, config.include_gate)
    rows, tokens = batch.ids.shape
    budget = share * sum(4 * site.depth * site.width for site in found)
    planned, _ = trace_bytes(shape, found, rows, tokens, round(len(batch.labels) / rows), budget)
    assert planned == pytest.approx(live.peak, rel=0.15)


def test_no_more_lanes_than_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the records are those that the run takes: of three, two, in the shuffled order."""
    records = [
        {"case_id": i, "prompt": "{} is" + " in" * 3**i, "subject": f"Rome {i}", "target_new": "Asia"} for i in range(3)
    ]
    (tmp_path / "three.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    model = save_tiny(tmp_path / "model", "llama")
    words = ["plan", "ft_smollm2", "--lm.name", str(model), "--data", "Records", "--device", "cpu", "--json"]
    words += ["--data.init_args.path", str(tmp_path / "three.jsonl"), "--model.init_args.layers", "[1]"]
    suffixes = []
    for seed in range(8):
        main([*words, "--data.init_args.limit", "2", "--data.init_args.shuffle_seed", str(seed)])
        found = json.loads(capsys.readouterr().out)
        assert found["lanes"] == 2
        suffixes.append(found["lengths"]["suffix"])
    assert len(set(suffixes)) == 2


def test_a_pass_is_planned() -> None:
    lm = tiny_lm("llama", n_layers=6, d_model=64, d_ff=160)
    shape = shape_of_config(lm.model.config, torch.float32, lm.tokenizer, "tiny")
    with LivePeak([*lm.model.parameters(), *lm.model.buffers()]) as live, torch.no_grad():
        lm.model(input_ids=torch.zeros(8, 30, dtype=torch.long), use_cache=False, logits_to_keep=1)
    assert passes.reading(shape, 8, 30, 8) == pytest.approx(live.peak, rel=0.15)


@pytest.mark.parametrize(("window", "kl"), [(64, 0), (64, 200), (32, 40)])
def test_perplexity_is_planned(window: int, kl: int) -> None:
    lm = tiny_lm("llama", n_layers=4, d_model=32, d_ff=80)
    text = windows_of(lm, "It is a long way to the sea, said the old man to the child. " * 40, 256, window)
    with LivePeak([*lm.model.parameters(), *lm.model.buffers()]) as live:
        before = believed(lm, text, kl) if kl else None
        perplexities(lm, text)
        if before is not None:
            divergences(lm, before)
    shape = shape_of_config(lm.model.config, torch.float32, lm.tokenizer, "tiny")
    phase, *_ = ScoringPlan(text=TextPlan(256, window, kl)).phases(shape, Lengths(), 512, False)
    assert phase.name == "perplexity"
    assert phase.peak == pytest.approx(live.peak, rel=0.15)
    assert phase.kept == 4 * kl * lm.vocab_size


def test_what_is_kept_counts_for_later_phases() -> None:
    assert total([Phase("a", 10, kept=4), Phase("b", 7), Phase("c", 3, kept=6)]) == 11
    assert total([Phase("a", 10), Phase("b", 3)]) == 10


@pytest.mark.parametrize(("gib", "lanes", "fits"), [(24, 4, True), (80, 32, True), (12, 1, False)])
def test_lanes_are_halved_until_it_fits(gib: int, lanes: int, fits: bool) -> None:
    phases = [Phase("statistics", GIB, kept=GIB), Phase("v*", 33 * GIB, lane=GIB)]
    found = _fit(phases, 14 * GIB, gib, 32)
    assert (found.lanes, found.fits) == (lanes, fits)
    assert found.peak == (14 + 1 + 1 + lanes) * GIB


def test_lanes_are_measured() -> None:
    """Two steps say what a lane takes; nothing of them is left."""
    lm = tiny_lm("llama", n_layers=4, d_model=32, d_ff=80)

    def make(n: int) -> ValueOptimization:
        return ValueOptimization(ValueObjective(lm, REQUESTS[:n], CONTEXTS, [Site("mlp", 1)], (NLL(),)))

    most, each = measured_lanes(lm, make, 10**12, 7)
    assert most == 7
    with LivePeak([*lm.model.parameters(), *lm.model.buffers()]) as live:
        make(3).loss().backward()
    fixed = live.peak - 3 * each
    assert abs(fixed) < each / 2
    assert measured_lanes(lm, make, int((fixed + 3.5 * each) / 0.85), 7) == (3, each)
    assert measured_lanes(lm, make, 0, 7)[0] == 1


def llama(folder: Path, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 4096, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config | more))
    return folder


def test_the_command_on_a_shape_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Llama 2 of 7B parameters, of which there is nothing but config.json."""
    main(["plan", "rome_llama2", "--lm.name", str(llama(tmp_path / "l7")), "--device", "cuda", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 6_738_415_616
    assert found["weights"] == 2 * 6_738_415_616
    fits = {fit["gib"]: fit for fit in found["fits"]}
    assert fits[80]["fits"]
    assert fits[24]["lanes"] < fits[48]["lanes"] <= fits[80]["lanes"] == 32
    statistics = next(phase for phase in found["phases"] if phase["name"] == "statistics")
    assert statistics["kept"] == 12 * 11008**2
    main(["plan", "rome_llama2", "--lm.name", str(tmp_path / "l7"), "--device", "cuda"])
    said = capsys.readouterr().out
    assert "6,738 M parameters, bfloat16" in said
    assert "80 GB" in said


@pytest.mark.parametrize("config", ["ft_llama2", "memit_llama2", "pac_zsre_llama2", "rep_llama2", "alphaedit_llama3"])
def test_every_kind_of_method_has_a_plan(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = llama(
        tmp_path / "tiny", hidden_size=64, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2
    )
    main(["plan", config, "--lm.name", str(folder), "--device", "cpu", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert all(phase["peak"] > 0 for phase in found["phases"])
    assert found["phases"][0]["name"] not in ("scoring", "generation"), "the method's own come first"


@pytest.mark.parametrize(("config", "option"), [("memit_llama2", "layers"), ("rep_llama2", "layer")])
def test_layers_that_a_trace_will_choose(
    config: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", config, "--lm.name", str(llama(tmp_path / "l7")), "--device", "cuda"]
    place = "model.editor" if config == "rep_llama2" else "model"
    main([*words, "--json", f"--{place}.{option}", "auto"])
    found = json.loads(capsys.readouterr().out)
    main([*words, "--json", f"--{place}.{option}", "null"])
    assert found.pop("assumes").startswith(f"model.{option}: auto is planned with the layers of null")
    assert found | {"assumes": None} == json.loads(capsys.readouterr().out)
    if config == "memit_llama2":
        main([*words, f"--{place}.{option}", "auto"])
        assert "auto is planned with the layers of null" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such_config"], "no_such_config"),
        ([], "which configuration?"),
        (["rome_smollm2", "--device", "tpu"], "device: 'tpu' is neither cpu nor cuda"),
        (["rome_smollm2", "--lm.name", "EMPTY"], "has no config.json"),
        (["rome_smollm2", "--lm.name", "BERT"], "not decoder-only"),
    ],
)
def test_errors(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "BERT").mkdir()
    (tmp_path / "BERT" / "config.json").write_text('{"model_type": "bert"}')
    given = [str(tmp_path / word) if word in ("EMPTY", "BERT") else word for word in words]
    with pytest.raises(SystemExit) as stop:
        main(["plan", *given] if words else ["plan", "--json"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") <= 2
