"""`null` on the command line, however deep the option is; and YAML that no person would write is refused.

jsonargparse 4 writes the value of an option inside a nested class back into words, where a null becomes the text `None`
(`--model.adapter.threshold null`). So `None` is read as null: no option of kedit's takes that text.
"""

from __future__ import annotations

import yaml
from jsonargparse import get_loader, set_loader

from kedit.runtime.yaml_text import load_yaml

_plain = get_loader("yaml")


def _load(text: str) -> object:
    return None if text == "None" else load_yaml(text, _plain)


def accept_null() -> None:
    """Makes every jsonargparse parser of this process read `None` as null; may be called again."""
    set_loader("yaml", _load, exceptions=(yaml.YAMLError,))
