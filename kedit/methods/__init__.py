"""The editing methods, each a LightningModule."""

from kedit.methods.base.module import EditingModule
from kedit.methods.locate_then_edit.alphaedit import AlphaEdit
from kedit.methods.locate_then_edit.emmet import EMMET
from kedit.methods.locate_then_edit.memit import MEMIT
from kedit.methods.locate_then_edit.pmet import PMET
from kedit.methods.locate_then_edit.rome import ROME
from kedit.methods.locate_then_edit.rrome import RROME
from kedit.methods.pac.module import PAC
from kedit.methods.rep.module import REP
from kedit.methods.steam.module import STEAM

__all__ = ["EMMET", "MEMIT", "PAC", "PMET", "REP", "ROME", "RROME", "STEAM", "AlphaEdit", "EditingModule"]
