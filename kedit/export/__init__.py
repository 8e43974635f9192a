"""An edit in other forms: a PEFT folder, an ordinary model folder, several deltas as one, and what a delta is."""

from kedit.export.hf import export_hf
from kedit.export.loading import EditedLM, load_edited
from kedit.export.peft import export_peft

__all__ = ["EditedLM", "export_hf", "export_peft", "load_edited"]
