"""`kedit config`, and configurations by name in other commands, in a folder that has none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kedit.cli import main
from kedit.cli.options.found import found_configs
from kedit.errors import KeditError
from kedit.runtime.shipped import shipped_configs
from kedit.sweeps.spec import read_sweep
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing in it, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def test_list(capsys: pytest.CaptureFixture[str], empty: Path) -> None:
    main(["config", "list"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[1:-1]]
    assert names == [name for name in shipped_configs() if "/" not in name]
    line = next(line for line in lines if line.startswith("rep_llama2 "))
    assert line.split("  ")[0:1] == ["rep_llama2"]
    assert "REP (ROME)" in line
    assert "Llama-2-7b-hf" in line
    assert line.rstrip().endswith("REP beside ROME on Llama-2-7B, by the paper's released recipe.")
    main(["config", "list", "llama-3", "rome", "steam"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-1]] == ["steam_rome_llama3"]
    main(["config", "list", "--sweeps", "seeds"])
    assert "\nsmollm2 " in capsys.readouterr().out
    main(["config", "list", "--reference", "grace"])
    assert "\nreference/grace " in capsys.readouterr().out
    (empty / "configs").mkdir()
    (empty / "configs" / "mine.yaml").write_text("# My experiment.\nlm: here/my-model\nmodel: ROME\n")
    (empty / "configs" / "broken.yaml").write_text("a: [\n")
    main(["config", "list"])
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("mine ")] == [
        ["mine", "ROME", "my-model", "My", "experiment."]
    ]
    assert "configs/broken.yaml cannot be read" in out


def test_show_is_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    for name, file in (("rep_smollm2", "configs/rep_smollm2.yaml"), ("smollm2", "slurm/sweeps/smollm2.yaml")):
        main(["config", "show", name])
        assert capsys.readouterr().out == (ROOT / file).read_text()


def test_show_full_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "show", "rome_smollm2", "--full"])
    full = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load((ROOT / "configs" / "rome_smollm2.yaml").read_text())
    reference = yaml.safe_load((ROOT / "configs" / "reference" / "rome.yaml").read_text())
    assert reference["model"]["init_args"].keys() == full["model"]["init_args"].keys()
    assert full["model"]["init_args"]["layer"] == given["model"]["init_args"]["layer"]
    assert full["model"]["init_args"]["mom2_adjustment"] is True  # a default


def test_copy(capsys: pytest.CaptureFixture[str], empty: Path) -> None:
    for words, file, use in (
        (["rome_smollm2"], "rome_smollm2.yaml", "kedit fit --config rome_smollm2.yaml"),
        (["smollm2", "my_sweep.yaml"], "my_sweep.yaml", "kedit sweep my_sweep.yaml"),
        (["cluster"], "cluster.yaml", "kedit slurm submit SWEEP --config cluster.yaml"),
        (["slurm/run.sbatch"], "run.sbatch", "sbatch run.sbatch CONFIG"),
    ):
        main(["config", "copy", *words])
        assert capsys.readouterr().out.endswith(f"{use}\n")
        assert (empty / file).is_file()
    assert (empty / "rome_smollm2.yaml").read_bytes() == (ROOT / "configs" / "rome_smollm2.yaml").read_bytes()
    assert read_sweep(empty / "my_sweep.yaml").tasks == read_sweep(ROOT / "slurm" / "sweeps" / "smollm2.yaml").tasks


def test_slips(capsys: pytest.CaptureFixture[str], empty: Path) -> None:
    (empty / "rome_smollm2.yaml").write_text("mine\n")
    for words, message in (
        (["lst"], "there is no command 'lst'; there are list, show, copy"),
        (["list", "nonesuch"], "no configuration has 'nonesuch' in its name, method, model or heading"),
        (["list", "--all"], "all: there is no such option"),
        (["show"], "which file? kedit config list names them"),
        (["show", "rep_smolm2"], "there is no file rep_smolm2; did you mean rep_smollm2"),
        (["show", "smolm2"], "there is no file smolm2; did you mean smollm2 or "),
        (["show", "smollm2", "--full"], "full: smollm2 is a sweep file; kedit sweep smollm2 --dry-run lists its tasks"),
        (["copy", "rome_smollm2"], "rome_smollm2.yaml is there already; name another: "),
        (["copy", "rome_smollm2", "no/x.yaml"], "no/x.yaml cannot be written: No such file or directory"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["config", *words])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith(f"kedit: error: {message}"), error
        assert len(error.splitlines()) == 1
    assert (empty / "rome_smollm2.yaml").read_text() == "mine\n"


def test_words_of_fit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    shipped = str(shipped_configs()["rep_smollm2"])
    for words in (["--config", "rep_smollm2"], ["-c", "configs/rep_smollm2.yaml"]):
        assert found_configs([*words, "--model.x", "--config-like"]) == [
            words[0],
            shipped,
            "--model.x",
            "--config-like",
        ]
    assert found_configs(["--config=rep_smollm2"]) == [f"--config={shipped}"]
    assert [record.getMessage() for record in caplog.records] == ["config: rep_smollm2, as it comes with kedit"] * 3
    Path("rep_smollm2.yaml").write_text("model: ROME\n")
    assert found_configs(["--config", "rep_smollm2.yaml"]) == ["--config", "rep_smollm2.yaml"]
    for words in (["--config", "model: {class_path: ROME}"], ["--config"], ["--config", "nonesuch", "--help"]):
        assert found_configs(words) == words
    with pytest.raises(KeditError, match=r"^config: there is no file rep_smolm2; did you mean rep_smollm2"):
        found_configs(["--config", "rep_smolm2"])


def test_a_sweep_of_shipped_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of tasks are those of the source tree, so that a sweep goes on where it is moved."""
    main(["sweep", "smollm2", "--dry-run"])
    listed = capsys.readouterr().out
    for task in read_sweep(ROOT / "slurm" / "sweeps" / "smollm2.yaml").tasks:
        assert f"{task.name} (not started)" in listed
    assert "kedit fit --config configs/rome_smollm2.yaml" in listed


def test_a_folder_of_the_name_of_a_sweep(capsys: pytest.CaptureFixture[str], empty: Path) -> None:
    """A model's folder, say: it holds no sweep, so the file is meant."""
    (empty / "smollm2").mkdir()
    main(["sweep", "smollm2", "--dry-run"])
    assert "kedit fit --config configs/rome_smollm2.yaml" in capsys.readouterr().out


def test_data_of_a_sweep_are_the_user_s(capsys: pytest.CaptureFixture[str], empty: Path) -> None:
    (empty / "mine.yaml").write_text(
        "configs: [rome_smollm2]\ngrid: {edit.seed: [0]}\n"
        "options: {data: Records, data.init_args.path: data/mine.jsonl}\n"
    )
    for words in (["sweep", "mine.yaml"], ["slurm", "submit", "mine.yaml", "--dry-run"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert "data.path: data/mine.jsonl: no such file; " in error
    assert not (empty / "runs").exists()


def test_options_of_a_cluster_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    main(["slurm", "submit", "smollm2", "--dry-run", "--config", "slurm/cluster.yaml", "--partition", "gpu"])
    assert "#SBATCH --partition=gpu" in capsys.readouterr().out


def test_ls_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ls"])
    out = capsys.readouterr().out
    assert "│ rep_smollm2 " in out
    assert "reference/rome" not in out
