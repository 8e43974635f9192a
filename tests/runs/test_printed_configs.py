"""What `--print_config` prints runs again; `kedit fit --help` can be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from kedit.cli import main
from kedit.cli.options.help import SHOWN
from tests.runs.test_configs import kind, overrides
from tests.support.config_files import ROOT

METHODS = ("rome", "rrome", "memit", "emmet", "rep", "steam_rome", "pac", "prune_memit", "rect_memit", "kn")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """What a command prints that ends by itself."""

    def run(words: list[str]) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert not stop.value.code
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_printed_config_runs(
    method: str, said: Callable[[list[str]], str], tmp_path: Path, tiny_folder: Callable[..., str]
) -> None:
    file = ROOT / "configs" / f"{method}_smollm2.yaml"
    model = tiny_folder(kind(file)[0], kind=kind(file)[1], n_layers=12)
    small = overrides(yaml.safe_load(said(["fit", "--config", str(file), "--print_config"])), model, tmp_path / "runs")
    text = said(["fit", "--config", str(file), *small, "--print_config"])
    again = tmp_path / "printed.yaml"
    again.write_text(text)
    assert list(yaml.safe_load(text))[:6] == ["seed_everything", "protocol", "lm", "edit", "model", "data"]
    assert said(["fit", "--config", str(again), "--print_config"]) == text
    main(["fit", "--config", str(again)])
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "summary.json").exists()


def test_the_whole_help_shows_kedits_own_options_first(said: Callable[[list[str]], str]) -> None:
    text = said(["fit", "--help", "all"])
    places = [text.index(f"\n  --{name}") for name in ("lm.name", "edit.regime", "model", "data", "run.root")]
    places += [text.index(f"\n  --{name}") for name in ("metrics.measure", "results.save_deltas", "ckpt_path")]
    places += [text.index("\n  --trainer.accelerator ")]
    assert places == sorted(places)
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("  --trainer.")]
    assert {name.removeprefix("--trainer.").rstrip(",") for name in listed} == set(SHOWN)
    assert len(text.splitlines()) < 330


def test_help_of_the_trainer(said: Callable[[list[str]], str]) -> None:
    text = said(["fit", "--help-trainer"])
    assert "\n  --trainer.gradient_clip_val " in text
    assert "--lm.name" not in text
