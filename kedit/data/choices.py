"""Questions with four answers to choose from, "from your own memory": alone, and behind a sentence that may mislead.

A model that knows the edited fact names its letter whatever the sentence before it says. Options are the new target,
the true one, and two targets of other records; which letter is whose depends on the seed and the case id alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from kedit.request import EditRecord, EditRequest, Probe
from kedit.text.prompts import escaped

LETTERS = ("A", "B", "C", "D")
KINDS = ("choice", "choice_supporting", "choice_irrelevant", "choice_contradicting")
ALONE = "Answer from your own memory with A, B, C or D."
BEHIND = "Answer from your own memory, not from the text, with A, B, C or D."
_DRAWS = 50  # of another record's statement: most have nothing to do with this one


class Choices:
    """Makes the probes, from what all records of a data set say.

    Args:
        records: All records: where wrong answers and sentences on other things come from.
        seed: Of the draws.
    """

    def __init__(self, records: Sequence[EditRecord], seed: int) -> None:
        self._seed = seed
        self._records = records
        self._targets: dict[str | None, dict[str, str]] = {None: {}}  # relation -> folded -> target; None: of all
        for record in records:
            request = record.request
            for target in (request.target_true, request.target_new):
                if target is not None:
                    for group in (request.relation, None):
                        self._targets.setdefault(group, {}).setdefault(target.casefold(), target)

    def of(self, record: EditRecord) -> Iterator[tuple[str, Probe]]:
        """For each kind the text with one {} that the request stands in, and the probe, whose own text is still empty.

        No kind where a record has no true target, or no two other targets are known.
        """
        request = record.request
        options = self._options(record)
        if request.target_true is None or not options:
            return
        new, true = (LETTERS[options.index(target)] for target in (request.target_new, request.target_true))
        listed = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))
        sentences = {
            "choice": "",
            "choice_supporting": sentence(request, request.target_new),
            "choice_irrelevant": self._irrelevant(request, options),
            "choice_contradicting": sentence(request, request.target_true),
        }
        for kind, text in sentences.items():
            if text is not None:
                lead = f"Text: {text}\n{BEHIND}" if text else ALONE
                context = f"{escaped(lead)}\nQuestion: {{}}{escaped(listed)}\nAnswer:"
                yield context, Probe(kind, "", new, true, options=LETTERS)

    def _options(self, record: EditRecord) -> list[str]:
        """The four answers, in the order of their letters; none where there are fewer."""
        request = record.request
        if request.target_true is None:
            return []
        random = Random(f"{self._seed}/{request.case_id}/choice")
        right = [str(text) for text in record.meta.get("target_true_aliases") or ()]
        used = {text.casefold() for text in (request.target_new, request.target_true, *right)}
        options = [request.target_new, request.target_true]
        for group in (request.relation, None):
            known = list(self._targets.get(group, {}))
            for folded in random.sample(known, min(len(known), len(used) + 2)):
                if len(options) < len(LETTERS) and folded not in used:
                    used.add(folded)
                    options.append(self._targets[group][folded])
        random.shuffle(options)
        return options if len(options) == len(LETTERS) else []

    def _irrelevant(self, request: EditRequest, options: Sequence[str]) -> str | None:
        """What another record truly says, of another relation, and of nothing that this one is about."""
        random = Random(f"{self._seed}/{request.case_id}/irrelevant")
        about = [text.casefold() for text in (*options, request.subject) if text]
        for other in (random.choice(self._records).request for _ in range(_DRAWS)):
            if other.target_true is None or (other.relation or other.case_id) == (request.relation or request.case_id):
                continue
            said = sentence(other, other.target_true)
            if not any(text in said.casefold() for text in about):
                return said
        return None


def sentence(request: EditRequest, target: str) -> str:
    """What a request states with a target, with a period behind it."""
    text = request.stating(target).strip()
    return text if text.endswith((".", "!", "?", "。")) else f"{text}."
