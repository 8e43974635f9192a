"""The editing methods, each a LightningModule."""

from kedit.methods.base import EditingModule
from kedit.methods.emmet import EMMET
from kedit.methods.memit import MEMIT
from kedit.methods.pac import PAC
from kedit.methods.rep import REP
from kedit.methods.rome import ROME
from kedit.methods.rrome import RROME
from kedit.methods.steam import STEAM

__all__ = ["EMMET", "MEMIT", "PAC", "REP", "ROME", "RROME", "STEAM", "EditingModule"]
