"""Options by names of before are told, in one line, where they are now."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kedit.errors import KeditError
from kedit.runtime.moved_options import MOST, MOVED, check_moved

WHERE = r" \(kedit 0\.2: configs/reference shows every option\)$"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": {"init_args": {"lm": {"name": "x"}, "layer": 5}}}, "model.lm is now lm"),
        ({"model.init_args.lm.name": ["a", "b"]}, "model.lm.name is now lm.name"),
        ({"model.lm": "x", "model.regime": "batch"}, "model.lm is now lm, model.regime is now edit.regime"),
        (
            {"model": {"init_args": {"editor": {"class_path": "ROME", "init_args": {"lanes": 2, "seed": 0}}}}},
            "model.editor.lanes is now edit.lanes, model.editor.seed is now edit.seed",
        ),
        ({"model.keep.weight": 0}, "model.keep.weight is now model.locality.weight"),
        ({"model": {"trace": {"pick": "all"}}}, "model.trace.pick is now model.trace.node_source"),
        ({"model.adapter": {"siblings": 1}}, "model.adapter.siblings is now model.adapter.confusable_names"),
    ],
)
def test_where_an_option_is_now(options: dict[str, Any], told: str) -> None:
    with pytest.raises(KeditError, match=f"^old.yaml: {re.escape(told)}{WHERE}"):
        check_moved(options, "old.yaml: ")


def test_every_option_has_its_line_and_many_have_one() -> None:
    for old, new in MOVED.items():
        with pytest.raises(KeditError, match=f"^{re.escape(f'{old} is now {new}')}{WHERE}"):
            check_moved({old: 1})
    with pytest.raises(KeditError, match=f"and {len(MOVED) - MOST} more{WHERE}") as told:
        check_moved(dict.fromkeys(MOVED, 1))
    assert str(told.value).count(" is now ") == MOST
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "options",
    [
        {"lm": {"name": "x"}, "edit": {"seed": 1}, "model": {"class_path": "ROME", "init_args": {"layer": 5}}},
        {"model.contexts.seed": 1, "data.shuffle_seed": 2, "model.stats": {"seed": 0}, "model.editor": "ROME"},
        {"model": "ROME", 3: {"lm": 1}},
        None,
        ["model.lm"],
        "model.lm",
    ],
)
def test_options_of_today(options: Any) -> None:
    check_moved(options)
