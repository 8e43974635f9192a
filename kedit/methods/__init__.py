"""The editing methods, each a LightningModule."""

from kedit.methods.base.module import EditingModule
from kedit.methods.kn.module import KN
from kedit.methods.locate_then_edit.emmet import EMMET
from kedit.methods.locate_then_edit.memit import MEMIT
from kedit.methods.locate_then_edit.rome import ROME
from kedit.methods.locate_then_edit.rrome import RROME
from kedit.methods.pac.module import PAC
from kedit.methods.rep.module import REP
from kedit.methods.steam.module import STEAM
from kedit.methods.wrappers.prune import PRUNE
from kedit.methods.wrappers.rect import RECT

__all__ = ["EMMET", "KN", "MEMIT", "PAC", "PRUNE", "RECT", "REP", "ROME", "RROME", "STEAM", "EditingModule"]
