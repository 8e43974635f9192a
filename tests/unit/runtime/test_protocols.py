"""The files of the named protocols: complete, described, and made of options that there are."""

from __future__ import annotations

import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from kedit.callbacks import EditMetrics
from kedit.cli.commands.fit import parsed
from kedit.errors import KeditError
from kedit.evaluation.score import EvalConfig
from kedit.runtime.protocols import protocol, protocols
from kedit.runtime.shipped import any_path, shipped_configs, shipped_protocols

ROOT = Path(__file__).resolve().parents[3]
NAMES = (
    "alphaedit-sequential", "easyedit-token", "memit-batch", "pac-consecutive", "rep-robust", "rome-single", "wild",
    "wild-chat",
)  # fmt: skip


def test_the_names() -> None:
    assert set(NAMES) <= set(protocols())
    assert not [name for name in shipped_configs() if name.startswith("protocols")]
    assert any_path("configs/protocols/wild.yaml").name == "wild.yaml"


@pytest.mark.parametrize("name", NAMES)
def test_a_file(name: str) -> None:
    text = shipped_protocols()[name].read_text()
    assert list(yaml.safe_load(text)) == ["paper", "settings", "needs", "reads", "open"]
    assert f"--protocol {name}" in text.partition("\n\n")[0]
    assert f"\n## {name}\n" in (ROOT / "docs" / "protocols.md").read_text()
    named = protocol(name)
    assert named.about.endswith(".")
    assert "edit.regime" in named.settings
    assert named.settings["data.chat"] is False
    assert {"metrics.scoring.generate", "metrics.scoring.wild"} <= named.settings.keys()
    scoring = {field.name for field in fields(EvalConfig)}
    assert {option.rpartition(".")[2] for option in named.settings if option.startswith("metrics.scoring")} <= scoring
    EditMetrics(**{"measure": named.settings.get("metrics.measure", "both")})


@pytest.mark.parametrize("name", NAMES)
def test_it_is_in_force(name: str) -> None:
    words = ["--model", "MEMIT", "--data", "Facts", "--protocol", name]
    config = parsed(words)
    assert config.protocol == name
    for option, value in protocol(name).settings.items():
        group, _, rest = option.partition(".")
        node = config[group]
        for part in rest.split("."):
            node = node.init_args[part] if "init_args" in node else node[part]
        assert node == value, option


def test_what_is_set_otherwise_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        "protocol: wild\nedit: {regime: sequential}\nmodel: {class_path: ROME}\ndata: {class_path: Facts}\n"
    )
    words = ["--config", str(config)]
    with pytest.raises(KeditError) as error:
        parsed([*words, "--data.chat", "true"])
    assert str(error.value) == (
        "protocol: wild has edit.regime single, not sequential; data.chat false, not true: leave that out or set it "
        "so, or leave out the protocol\n"
        "as wild has it, at the end of the command: --edit.regime single --data.chat false"
    )
    assert parsed([*words, "--edit.regime", "single"]).edit.regime == "single"
    assert parsed([*words, "--protocol", "null"]).edit.regime == "sequential"
    with pytest.raises(KeditError, match=r"rep-robust has edit.regime single, .*; data.queries a group, not null:"):
        parsed([*words, "--protocol", "rep-robust", "--data.queries", "null"])


@pytest.mark.parametrize("name", ["ike_smollm2", "retrieval_smollm2", "steam_memit_smollm2"])
def test_a_refusal_says_what_to_add(name: str) -> None:
    """Shipped configurations that answer more freely than `wild`, and a stop that a shell would break."""
    words = ["--config", f"configs/{name}.yaml", "--protocol", "wild", "--metrics.scoring.stop", "x"]
    with pytest.raises(KeditError) as error:
        parsed(words)
    _, _, added = str(error.value).partition("at the end of the command: ")
    typed = subprocess.run(["bash", "-c", f"printf '%s\\0' {added}"], capture_output=True, text=True, check=True).stdout
    scoring = parsed([*words, *typed.split("\0")[:-1]]).metrics.scoring
    assert (scoring.generate, scoring.stop) == (["rewrite"], "\n")


def test_a_printed_configuration_has_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parsed(["--model", "ROME", "--data", "Facts", "--protocol", "wild", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["protocol"], printed["edit"]["regime"]) == ("wild", "single")
    assert printed["metrics"]["scoring"]["wild"] == ["rewrite", "paraphrase"]


def test_there_is_none_of_that_name() -> None:
    with pytest.raises(KeditError, match=r"^protocol: there is none that is called 'wildd'; did you mean wild\?$"):
        protocol("wildd")
    with pytest.raises(KeditError, match=r"^protocol: .* 'x'; there are alphaedit-sequential, easyedit-token, "):
        protocol("x")
