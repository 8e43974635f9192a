"""`Edit`: what one call of `kedit.edit` made, to be looked at, kept, put into the model and taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.jupyter import JupyterMixin
from rich.table import Table

from kedit.delta.apply import edited, written
from kedit.delta.delta import Delta
from kedit.delta.serialization import save_delta
from kedit.editing.held import in_use
from kedit.editing.said import continuations
from kedit.editing.sentences import Sentence
from kedit.editing.table import edit_view, plain, remarks, sentence_table
from kedit.model.lm import LM
from kedit.request import EditRequest


class Edit(JupyterMixin):
    """One edit, of one fact or several. The model is the unedited one unless `apply` was called.

    `with edit:` applies it inside the block alone. Printing it, or showing it in a notebook, gives its table.

    Attributes:
        lm: The model, with its tokenizer; `model` is the transformers model in it.
        delta: What the edit changes.
        requests: What was asked for.
        before: What the unedited model says: the requests, their paraphrases, neighbours and the user's questions.
        after: What the edited model says to the same prompts, in the same order.
        info: Figures of the optimisation, one mapping per request.
        errors: Requests whose edit failed: case id and why. `delta` holds the others.
        card: What a saved delta says of itself: model, method with every setting, requests, protocol, versions.
        seconds: Wall-clock time of the edit itself, without loading and measuring.
    """

    def __init__(
        self,
        lm: LM,
        delta: Delta,
        requests: Sequence[EditRequest],
        before: Sequence[Sentence],
        after: Sequence[Sentence],
        info: Sequence[Mapping[str, Any]],
        errors: Mapping[str, str],
        card: Mapping[str, Any],
        seconds: float = 0.0,
    ) -> None:
        self.lm, self.delta, self.requests = lm, delta, tuple(requests)
        self.before, self.after = list(before), list(after)
        self.info, self.errors, self.card = [dict(one) for one in info], dict(errors), dict(card)
        self.seconds = seconds
        self._take_back: Callable[[], None] | None = None
        self._entered: list[bool] = []

    # -- which weights -----------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The transformers model that was edited: `applied` says which weights it has now."""
        return self.lm.model

    @property
    def applied(self) -> bool:
        """Whether the model holds this edit now."""
        return self._take_back is not None

    def apply(self) -> Self:
        """Writes the edit into the model, in place; once more does nothing.

        Raises:
            KeditError: Another thread has an edit open on this model.
        """
        if self._take_back is None:
            self._take_back = written(self.model, self.delta)
        return self

    def revert(self) -> Self:
        """Takes the edit out of the model: the weights are the old ones, bit for bit; once more does nothing.

        Of several edits of one model any may be taken out, in any order.
        """
        if self._take_back is not None:
            self._take_back()
            self._take_back = None
        return self

    def __enter__(self) -> Self:
        """Applies the edit for the block; one that was applied before stays so after it."""
        self._entered.append(self.applied)
        return self.apply()

    def __exit__(self, *_: object) -> None:
        """Takes it back."""
        if not self._entered.pop():
            self.revert()

    # -- ask and keep ------------------------------------------------------------------------------------

    def ask(self, prompts: str | Sequence[str], max_new_tokens: int = 20) -> Any:
        """What the edited model goes on to say, whether the edit is applied or not.

        Args:
            prompts: One text, or a list of them.
            max_new_tokens: Tokens after which a continuation ends at the latest.

        Returns:
            One text for one, a list for a list.
        """
        with in_use(self.model), edited(self.model, *([] if self.applied else [self.delta])):
            return continuations(self.lm, prompts, max_new_tokens)

    def save(self, folder: str | Path) -> Path:
        """Writes the delta with its full card: `kedit.load_delta`, `kedit.edited` and `kedit ask --delta` read it.

        The card tells which facts were edited.

        Args:
            folder: Made if it is not there.

        Raises:
            CannotWrite: The disk is full, or the folder cannot be written.
        """
        return save_delta(folder, self.delta, self.full_card())

    def export_peft(self, folder: str | Path) -> Any:
        """Writes a LoRA folder that `PeftModel.from_pretrained` reads (`kedit.export.export_peft`)."""
        return self._export("export_peft", folder)

    def export_hf(self, folder: str | Path) -> Any:
        """Writes a Hugging Face folder of the edited model (`kedit.export.export_hf`)."""
        return self._export("export_hf", folder)

    def full_card(self) -> dict[str, Any]:
        """The card with what the model said before and after."""
        pairs = zip(self.before, self.after, strict=True)
        shown = [{"before": asdict(old), "after": asdict(new)} for old, new in pairs]
        return {**self.card, "sentences": shown}

    def _export(self, how: str, folder: str | Path) -> Any:
        from kedit import export  # heavy, and only needed here

        with self._unedited():
            return getattr(export, how)(self.delta, self.lm, Path(folder), self.full_card())

    @contextmanager
    def _unedited(self) -> Iterator[None]:
        """Inside, the model is without this edit."""
        applied = self.applied
        self.revert()
        try:
            with in_use(self.model):
                yield
        finally:
            if applied:
                self.apply()

    # -- to be read --------------------------------------------------------------------------------------

    @property
    def summary(self) -> str:
        """The edit in one line: `The capital of France is: Paris -> Lyon`; of several facts, how many are made."""
        made = [r for r in self.requests if r.case_id not in self.errors]
        if len(self.requests) > 1:
            new = sum(s.says_new for s in self.after if s.kind == "request")
            return f"{len(made)} of {len(self.requests)} facts edited, {new} of them said by the edited model"
        first = next(i for i, sentence in enumerate(self.before) if sentence.kind == "request")
        old, new = self.before[first], self.after[first]
        was, now = ((s.answer or s.text.strip() or "(nothing)") for s in (old, new))
        return f"{old.prompt}: {was} -> {now}"

    @property
    def state(self) -> str:
        """Which weights the model has now, in words."""
        return "in the model now: .revert() takes it out" if self.applied else "not in the model: .apply() puts it in"

    def table(self) -> Table:
        """The sentences before and after, for rich's console."""
        return sentence_table(self.before, self.after)

    def view(self, *lines: str) -> RenderableType:
        """Summary, table, how it was made and the edits that failed, with more lines below."""
        failed = [f"failed: {case}: {why}" for case, why in self.errors.items()]
        config = (self.card.get("settings") or {}).get("config")
        of = f" with the settings of {config}" if config else ""
        how = f"{self.card.get('method')}{of} on {self.lm.name}: {self.seconds:.1f} s for the edit itself"
        return edit_view(self.summary, self.table(), [how, *failed, *remarks(self.before), *lines])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Summary, table and state."""
        yield self.view(self.state)

    def __str__(self) -> str:
        return plain(self.view(self.state))

    def __repr__(self) -> str:
        return f"<Edit {self.card.get('method')} on {self.lm.name}: {self.summary}; {self.state}>"
