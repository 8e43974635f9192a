"""The tables of all methods."""

from __future__ import annotations

from pathlib import Path

from benchmarks.paper_tables.methods_table import FILE, Arm, ranks, read, table

HEAD = "data,regime,arm,measure,unedited,mean,ci_low,ci_high\n"
COMMON = "zsre,batch,{arm},efficacy/exact,0,{exact},1,2\nzsre,batch,{arm},efficacy/wild,0,{wild},1,2\n"
TOKENS = "zsre,batch,{arm},score/tokens_arithmetic,,{score},40,60\n"
SUCCESS = "zsre,batch,{arm},score/success,15,{score},40,60\nzsre,batch,{arm},locality/success,77,70,60,80\n"


def arms_of(folder: Path, *parts: str) -> dict[str, Arm]:
    (folder / "compare.csv").write_text(HEAD + "".join(parts), encoding="utf-8")
    return read(folder / "compare.csv")["zsre", "batch"]


def arm(name: str, score: float, wild: float, how: str) -> str:
    return (COMMON + how).format(arm=name, exact=90, wild=wild, score=score)


def test_the_score_of_tokens_where_neighbours_have_no_rival(tmp_path: Path) -> None:
    arms = arms_of(tmp_path, arm("ft_smollm2 batch layers", 50, 9, TOKENS), arm("locft_smollm2 batch", 60, 5, TOKENS))
    head, _, unedited, first, second = table(arms, "batch")
    assert "| locality |" not in head
    assert "| exact |" in head
    assert unedited.startswith("| *unedited* | - | 0.0 |")
    assert first.startswith("| locft | 60.0 [40, 60] | 5.0 [1, 2] |")
    assert second.startswith("| ft layers | 50.0 [40, 60] | 9.0 [1, 2] |")
    assert ranks(arms) == "2 of 2 change rank, 1 of 1 pairs swap, Kendall's tau-b -1.00"


def test_the_classic_score_where_all_arms_have_it(tmp_path: Path) -> None:
    both = arm("rome_smollm2 batch", 80, 5, SUCCESS) + TOKENS.format(arm="rome_smollm2 batch", score=10)
    arms = arms_of(tmp_path, both, arm("locft_smollm2 batch", 60, 9, SUCCESS))
    head, *_, first, second = table(arms, "batch")
    assert "| locality |" in head
    assert first.startswith("| rome | 80.0")
    assert second.startswith("| locft | 60.0")


def test_every_committed_table_can_be_made() -> None:
    for (_, regime), arms in read(FILE).items():
        assert len(table(arms, regime)) == len(arms) + 3
        assert "change rank" in ranks(arms)
