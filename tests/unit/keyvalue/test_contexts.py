"""Context templates: whose seed draws them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kedit.forward.binding import load_lm
from kedit.keyvalue.contexts import ContextConfig, context_templates
from kedit.methods import ROME
from kedit.methods.base.edit_config import EditConfig
from kedit.model.lm import LMConfig
from tests.support.device import PLACE

LENGTHS = [[4, 3]]


@pytest.mark.parametrize(("own", "of_run", "seed"), [(None, 0, 0), (None, 5, 5), (3, 5, 3), (0, 5, 0)])
def test_the_runs_seed_draws_them_where_no_other_is_named(
    own: int | None, of_run: int, seed: int, tiny_folder: Callable[..., str]
) -> None:
    lm = load_lm(LMConfig(tiny_folder("gpt2")), device=PLACE)
    module = ROME(contexts=ContextConfig(lengths=LENGTHS, seed=own), layer=1)
    module.configure(LMConfig(lm.name), EditConfig(seed=of_run))
    module.use_lm(lm)
    module.start()
    assert module.contexts == context_templates(lm, ContextConfig(lengths=LENGTHS, seed=seed))
    assert module.contexts != context_templates(lm, ContextConfig(lengths=LENGTHS, seed=seed + 1))
