"""A translated file as the text of a configuration, with comments that say where each option comes from."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from kedit.cli.easyedit.translate import Said, Translation

WIDTH = 118
CALLS = "The call decides in EasyEdit. edit: single; edit with sequential_edit=True: sequential; batch_edit: batch."
DATA = "These come with kedit. Yours: class_path Records, CounterFact or ZsRE, and init_args: {path: FILE}."
LEAST = 10
"""Records that are edited, where an edit batch has no more of them."""


def text_of(done: Translation, source: str) -> str:
    """The configuration.

    Args:
        done: What the file became.
        source: The file's name.
    """
    options = dict(done.options)
    model = options.pop("lm.name", None)
    lm = {"name": model or "smollm2-135m"} | {name: value for name, value in _below(options, "lm.")}
    size = options.get("data.batch_size", 1)
    method = dict(_below(options, "model."))
    lines = [
        *_heading(done, source, str(lm["name"])),
        "",
        "lm:",
        *_options(done, "lm", lm),
        "",
        "edit:",
        f"  # {CALLS}",
        f"  regime: {done.method.regime}",
        "",
        "model:",
        f"  class_path: {done.method.class_path}",
        *(["  init_args:"] if method else []),
        *_options(done, "model", _nested(method), "    "),
        "",
        "data:",
        f"  # {DATA}",
        "  class_path: Facts",
        "  init_args:",
        f"    limit: {max(LEAST, size)}",
        *_options(done, "data", dict(_below(options, "data.")), "    "),
    ]
    return "\n".join(lines) + "\n"


def _heading(done: Translation, source: str, model: str) -> Iterator[str]:
    yield from _comment(f"{done.method.name} on {model}, from {source} of EasyEdit (kedit from-easyedit).")
    yield "#"
    yield f"# {len(done.options)} options are carried over; where the name is another, a comment has the old one."
    yield from _section("Different here:", done.differs)
    yield from _section("Not needed here:", done.dropped)
    yield from _section("Not known, and not carried over; look whether you need them:", done.unknown)
    page = done.method.class_path.lower()
    yield "#"
    yield from _comment(f"Every option: kedit config show reference/{page}. The table of names: docs/migrate.md.")


def _section(title: str, lines: Sequence[Said]) -> Iterator[str]:
    if lines:
        yield "#"
        yield f"# {title}"
    for line in lines:
        yield from _comment(f"- {line.key}: {line.value}{f': {line.note}' if line.note else ''}", "    ")


def _comment(words: str, indent: str = "") -> Iterator[str]:
    yield from (
        f"# {line}"
        for line in textwrap.wrap(
            words, WIDTH - 2, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
    )


def _below(options: Mapping[str, Any], group: str) -> Iterator[tuple[str, Any]]:
    return ((name.removeprefix(group), value) for name, value in options.items() if name.startswith(group))


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """`stats.tokens` as an option of a group `stats`."""
    nested: dict[str, Any] = {}
    for name, value in options.items():
        group, dot, below = name.partition(".")
        if dot:
            nested.setdefault(group, {})[below] = value
        else:
            nested[name] = value
    return nested


def _options(done: Translation, group: str, options: Mapping[str, Any], indent: str = "  ") -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _options(done, f"{group}.{name}", value, f"{indent}  ")
        else:
            origin = done.origin.get(f"{group}.{name}")
            yield f"{indent}{name}: {_value(value)}{f'  # {origin}' if origin else ''}"


def _value(value: Any) -> str:
    """A value on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
