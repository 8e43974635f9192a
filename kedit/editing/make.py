"""`edit`: one call from a fact to an `Edit`."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kedit.delta.apply import edited
from kedit.editing.edit import Edit
from kedit.editing.held import in_use, lm_of, load
from kedit.editing.method import (
    configure,
    lm_config,
    module_of,
    own_copy,
    query_config,
    regime_for,
    settings_card,
)
from kedit.editing.probes import NEIGHBOURS, PARAPHRASES, neighbours, paraphrases
from kedit.editing.requests import many_requests, one_request
from kedit.editing.run import GivenRequests, Made, run
from kedit.editing.sentences import Asked, fits, say
from kedit.editing.settings import Settings, settings_of, with_options
from kedit.errors import KeditError, at_least, shown
from kedit.methods import EditingModule
from kedit.model.lm import LM, LMConfig
from kedit.request import EditRecord, EditRequest
from kedit.results.rows import edit_row, without_probes
from kedit.runtime.provenance import provenance

log = logging.getLogger(__name__)

MUST_FIT = ("request", "question")
"""What the user gave: a prompt that is too long is an error. Of what kedit adds it is left out."""


def edit(
    model: Any,
    tokenizer: Any = None,
    prompt: str | None = None,
    subject: str | None = None,
    target: str | None = None,
    true_target: str | None = None,
    method: str | EditingModule = "rome",
    requests: Any = None,
    *,
    options: Mapping[str, Any] | None = None,
    regime: str | None = None,
    lanes: int | None = None,
    seed: int | None = None,
    ask: str | Sequence[str] = (),
    n_paraphrases: int = PARAPHRASES,
    n_neighbours: int = NEIGHBOURS,
    chat: bool | None = None,
    system: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    progress: bool = False,
    told: Callable[[str], None] | None = None,
) -> Edit:
    """Edits a fact, or several, and says what the model makes of it.

    The model stays the unedited one, bit for bit, with its gradients' flags and training mode: `Edit.apply` writes the
    edit into it. Nothing is written to the disk but statistics, once, into kedit's cache.

    Args:
        model: An alias (`smollm2-135m`), a local folder, a hub id or an `LMConfig`, which is loaded; an `LM`; or a
            transformers model in memory, with its `tokenizer`.
        tokenizer: The fast tokenizer of a transformers model.
        prompt: With one `{}` where the subject goes, or with the subject itself in it, once.
        subject: What the fact is about.
        target: What the prompt should be continued with.
        true_target: What it should be continued with before the edit, if the user wants it named.
        method: A name of `kedit ls methods` in any case, `steam_memit` and the like, or a configuration
            (`rome_smollm2`, `my/own.yaml`); its settings are those of the configuration that ships for the model, so
            that `kedit fit` makes the same delta. Or a method object, e.g. `ROME(layer=5)`, as it is.
        requests: Instead of one fact: a list of `EditRequest`s or mappings (`prompt`, `subject`, `target`,
            `true_target`), or a JSONL file. All are edited into one delta.
        options: Settings of a named method to be replaced, as a configuration names them: `{"layer": 7}`.
        regime: `single`, `batch` or `sequential`; None: of one fact the method's usual one; of several the one that
            keeps them all.
        lanes: Requests optimised side by side; None: as configured.
        seed: Of the edit; None: as configured (0).
        ask: Prompts of the user's own, asked before and after.
        n_paraphrases: Other wordings of each prompt that are asked (of several requests, one).
        n_neighbours: Other subjects that each prompt is asked about (of several requests, one).
        chat: Ask every prompt as a user of a chat, through the tokenizer's chat template; the target is the
            assistant's answer (docs/chat.md). None: as configured, or plain prompts.
        system: The chat's system message; None: the template's own, if it has one.
        dtype: Type of the weights of a model that is loaded here; None: as configured, or as `LMConfig` chooses.
        device: Where it is loaded: `auto` (a GPU where there is one), `cpu`, `cuda`.
        progress: Show a bar of the optimiser's steps.
        told: Called with a line when a step begins (loading, editing, asking).

    Raises:
        KeditError: The request, the method, an option or the model is not what it should be; or the edit failed (of
            several requests: all did; `Edit.errors` has those that failed).
    """
    facts = [prompt, subject, target, true_target]
    if requests is not None and any(text is not None for text in facts):
        raise KeditError("requests: give either prompt, subject and target, or a list of requests, not both")
    asked_for = [one_request(prompt, subject, target, true_target)] if requests is None else many_requests(requests)
    questions = [ask] if isinstance(ask, str) else list(ask)
    if odd := [one for one in questions if not isinstance(one, str) or not one.strip()]:
        raise KeditError(f"ask: expects texts, not {shown(odd[0])}")
    at_least("n_paraphrases", n_paraphrases, 0)
    at_least("n_neighbours", n_neighbours, 0)
    say_so = told or (lambda line: None)

    def ready(settings: Settings | None) -> EditingModule:
        module = own_copy(method) if isinstance(method, EditingModule) else module_of(settings or Settings({}))
        configured = None if settings is None else settings.edit.get("regime")
        configure(module, regime_for(module, len(asked_for), regime, configured), lanes, seed)
        return module

    settings = _settings(model, method, options)
    module = ready(settings)  # a slip is told before a model is loaded
    with ExitStack() as stack:
        lm = _model(model, tokenizer, settings, dtype, device, stack, say_so)
        if isinstance(method, str) and settings is not None and settings.source is None:
            settings = with_options(settings_of(method, lm=lm), options or {})
            module = ready(settings)
        data = _data(module, asked_for, settings, chat, system)
        lm = data.asking(lm)

        several = len(asked_for) > 1
        counts = (min(n_paraphrases, 1), min(n_neighbours, 1)) if several else (n_paraphrases, n_neighbours)
        prompts = _prompts(asked_for, questions, *counts)
        prompts = [one for one in prompts if one.kind in MUST_FIT or fits(lm, one.prompt)]
        true = {one.case_id: one.target_true for one in asked_for if one.target_true is not None}
        stack.enter_context(in_use(lm.model))
        before = say(lm, prompts, true=true)
        say_so(f"editing with {type(module).__name__}")
        made = run(module, lm, data, progress)
        delta = _delta(made, asked_for)
        say_so("asking the edited model")
        with edited(lm.model, delta):
            after = say(lm, prompts, before)
    return Edit(
        lm, delta, asked_for, before, after, *_figures(made, asked_for), _card(made, module, settings), made.seconds
    )


def _settings(model: Any, method: Any, options: Mapping[str, Any] | None) -> Settings | None:
    """Those of a named method, as far as they are known before the model is loaded; None for a method object."""
    if isinstance(method, EditingModule):
        if options:
            raise KeditError("options: a method object has its own; give them to its constructor")
        return None
    if not isinstance(method, str):
        raise KeditError(f"method: expects a name, or a method such as ROME(), not {shown(method)}")
    name = model.name if isinstance(model, LM | LMConfig) else str(model) if isinstance(model, str | Path) else None
    return with_options(settings_of(method, name), options or {})


def _model(
    model: Any,
    tokenizer: Any,
    settings: Settings | None,
    dtype: str | None,
    device: str,
    stack: ExitStack,
    say_so: Callable[[str], None],
) -> LM:
    if isinstance(model, str | Path):
        config = lm_config(settings or Settings({}), str(model), dtype=dtype)
        say_so(f"loading {config.name}")
        return load(config, device)
    if isinstance(model, LMConfig):
        say_so(f"loading {model.name}")
        return load(model, device)
    if dtype is not None:
        raise KeditError("dtype: this model is loaded already, and kept as it is")
    if hasattr(model, "parameters"):
        stack.enter_context(in_use(model))
    return lm_of(model, tokenizer)


def _data(
    module: EditingModule,
    requests: Sequence[EditRequest],
    settings: Settings | None,
    chat: bool | None,
    system: str | None,
) -> GivenRequests:
    """The requests as a data set, with the options of data that the configuration names."""
    options = {} if settings is None else settings.data
    chat = bool(options.get("chat", False)) if chat is None else chat
    more = {"joiner": options.get("joiner", "auto"), "chat": chat}
    more["system"] = options.get("system") if chat and system is None else system
    configured = int(options.get("batch_size", 1))
    size = max(len(requests), configured) if module.regime == "batch" else configured
    records = [EditRecord(request, ()) for request in requests]
    return GivenRequests(records, size, None if settings is None else query_config(settings), **more)


def _prompts(requests: Sequence[EditRequest], questions: Sequence[str], n_words: int, n_others: int) -> list[Asked]:
    """Everything that is asked before and after: of each request, then the user's questions."""
    found: list[Asked] = []
    for one in requests:
        texts = [("request", one.text)]
        texts += [("paraphrase", text) for text in paraphrases(one, n_words)]
        texts += [("neighbour", text) for text in neighbours(one, n_others)]
        found += [Asked(text, kind, one.case_id, one.target_new, one.joiner) for kind, text in texts]  # type: ignore[arg-type]
    new = requests[0].target_new if len(requests) == 1 else None
    return found + [Asked(text, "question", None, new) for text in questions]


def _delta(made: Made, requests: Sequence[EditRequest]) -> Any:
    """What the edits change.

    Raises:
        KeditError: None was made; says why.
    """
    errors = _errors(made)
    if made.delta is None or len(errors) == len(requests):
        why = next(iter(errors.values()), "nothing was changed")
        of = "the edit" if len(requests) == 1 else f"all {len(requests)} edits"
        raise KeditError(f"{of} failed: {why}; the model is as it was")
    for case, why in errors.items():
        log.warning("the edit %s failed: %s", case, why)
    return made.delta


def _errors(made: Made) -> dict[str, str]:
    failed = {o.record.request.case_id: o.error for o in made.outcomes if o.error is not None}
    return {**failed, **made.unfit}


def _figures(made: Made, requests: Sequence[EditRequest]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    info = {outcome.record.request.case_id: outcome.info for outcome in made.outcomes}
    return [info.get(one.case_id, {}) for one in requests], _errors(made)


def _card(made: Made, module: EditingModule, settings: Settings | None) -> dict[str, Any]:
    """What a delta says of itself, as those of `kedit fit` do; with every setting."""
    rows = [edit_row(o.record, o.info, o.error, 0, module.regime, "edit") for o in made.outcomes]
    return {
        **made.about,
        "settings": None if settings is None else settings_card(settings),
        "protocol": {
            "regime": module.regime,
            "measured": "before and after the edit",
            "scorer": "greedy continuation; probability of all tokens of an answer as the continuation",
        },
        "requests": [without_probes(row) for row in rows],
        "provenance": provenance(),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
