"""Builds Facts (`kedit/data/readers/facts.jsonl`) from the hand-written tables beside this file.

One table per relation: templates, and under every object the subjects of which it is true, each with other
names for it. A subject without other names serves as a neighbour only. Needs no model: `known` and `greedy`
are measured by `facts_known.py`, and kept here for records whose prompt and answer did not change.

    python benchmarks/facts/build_facts.py && python benchmarks/facts/facts_known.py --write
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("build_facts")

TABLES = Path(__file__).resolve().parent
OUTPUT = TABLES.parents[1] / "kedit" / "data" / "readers" / "facts.jsonl"
SPLITS = ("test", "train", "test", "validation")  # dealt like cards to the subjects of each relation
NEIGHBORS = 6
Attributes = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Relation:
    """One table: `facts[object][subject]` is the list of the subject's other names, empty for a neighbour."""

    name: str
    prompt: str
    paraphrases: list[str]
    neighbor_prompts: list[str]
    portability: list[dict[str, str]]
    facts: dict[str, dict[str, list[str]]]
    also_true: dict[str, list[str]]  # subject -> objects that must not become its new target
    extra_objects: list[str]  # new targets that are true of no subject in the table

    def objects(self) -> list[str]:
        """Everything that can become a new target, in a fixed order."""
        return sorted([*self.facts, *self.extra_objects])

    def also(self, subject: str) -> set[str]:
        """Objects that are, or may be called, true of a subject."""
        listed = {o for o, names in self.facts.items() if subject in names}
        return listed | set(self.also_true.get(subject, []))


def read_relation(path: Path) -> Relation:
    """Reads one table."""
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    table.setdefault("also_true", {})
    table.setdefault("extra_objects", [])
    return Relation(name=path.stem, **table)


def portability(relation: Relation, subject: str, true: str, new: str, attributes: Attributes) -> list[dict[str, str]]:
    """One-hop consequences of `new` that differ from those of `true`; none that the subject gives away."""
    found = []
    for rule in relation.portability:
        table = attributes[rule["attribute"]]
        answer, old = table.get(new), table.get(true)
        if answer is None or old is None or answer == old or answer in subject or old in subject:
            continue
        found.append({"prompt": rule["prompt"].replace("{}", subject), "answer": answer, "old_answer": old})
    return found


def neighbors(relation: Relation, subject: str, true: str, rng: random.Random) -> list[dict[str, str]]:
    """Other subjects with the same object; every third prompt uses the second wording."""
    aliases = relation.facts[true][subject]
    others = [name for name in relation.facts[true] if name != subject and name not in aliases]
    picked = rng.sample(others, min(NEIGHBORS, len(others)))
    wordings = relation.neighbor_prompts
    prompts = [wordings[-1] if i % 3 == 2 else wordings[0] for i in range(len(picked))]
    return [{"prompt": p.replace("{}", name), "subject": name} for p, name in zip(prompts, picked, strict=True)]


def choose_target(
    relation: Relation,
    subject: str,
    true: str,
    used: Counter[str],
    attributes: Attributes,
    rng: random.Random,
) -> str:
    """The least used object of the relation that is false of the subject and has a consequence to ask for.

    Raises:
        ValueError: No object of the table will do.
    """
    names = " | ".join([subject, *relation.facts[true][subject]])
    fit = [
        o
        for o in relation.objects()
        if o not in relation.also(subject) and o not in names and portability(relation, subject, true, o, attributes)
    ]
    if not fit:
        raise ValueError(f"{relation.name}: no new target fits {subject!r}")
    return min(fit, key=lambda o: (used[o], rng.random()))


def build(seed: int) -> list[dict[str, Any]]:
    """All records, in the order of the tables, without `known` and `greedy`."""
    attributes: Attributes = tomllib.loads((TABLES / "attributes.toml").read_text(encoding="utf-8"))
    split_of: dict[str, str] = {}
    records: list[dict[str, Any]] = []
    for path in sorted(TABLES.glob("*.toml")):
        if path.stem == "attributes":
            continue
        relation = read_relation(path)
        rng = random.Random(f"{seed}/{relation.name}")
        subjects = [(true, s) for true, table in relation.facts.items() for s, aliases in table.items() if aliases]
        cards = rng.sample([SPLITS[i % len(SPLITS)] for i in range(len(subjects))], len(subjects))
        used: Counter[str] = Counter()
        for (true, subject), card in zip(subjects, cards, strict=True):
            new = choose_target(relation, subject, true, used, attributes, rng)
            used[new] += 1
            records.append(
                {
                    "case_id": f"facts-{len(records) + 1:04d}",
                    "relation": relation.name,
                    "prompt": relation.prompt,
                    "subject": subject,
                    "target_true": true,
                    "target_new": new,
                    "paraphrases": [p.replace("{}", subject) for p in relation.paraphrases],
                    "neighbors": neighbors(relation, subject, true, rng),
                    "subject_aliases": relation.facts[true][subject],
                    "portability": portability(relation, subject, true, new, attributes),
                    "split": split_of.setdefault(subject, card),  # a subject has one split in all relations
                }
            )
    return records


def measured(path: Path) -> dict[tuple[str, str, str], tuple[bool, str]]:
    """`known` and `greedy` of the records in an existing file, by (prompt, subject, target_true)."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(r["prompt"], r["subject"], r["target_true"]): (r["known"], r["greedy"]) for r in rows}


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write; default: the package's")
    parser.add_argument("--seed", type=int, default=0, help="seed of every choice; default: 0")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    before = measured(args.output)
    records = build(args.seed)
    for record in records:
        key = (record["prompt"], record["subject"], record["target_true"])
        record["known"], record["greedy"] = before.get(key, (False, ""))
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    args.output.write_text("".join(lines), encoding="utf-8")
    unmeasured = sum(not record["greedy"] for record in records)
    log.info("%s: %d records, %d of them not measured yet", args.output.name, len(records), unmeasured)


if __name__ == "__main__":
    main()
