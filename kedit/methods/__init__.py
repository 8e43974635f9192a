"""The editing methods, each a LightningModule."""

from kedit.methods.base import EditingModule
from kedit.methods.rome import ROME
from kedit.methods.rrome import RROME

__all__ = ["ROME", "RROME", "EditingModule"]
