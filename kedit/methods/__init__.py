"""The editing methods, each a LightningModule."""

from kedit.methods.base.module import EditingModule
from kedit.methods.fine_tuning.ft import FT
from kedit.methods.fine_tuning.locft import LocFT
from kedit.methods.fine_tuning.lora import LoRA
from kedit.methods.kn.module import KN
from kedit.methods.locate_then_edit.alphaedit import AlphaEdit
from kedit.methods.locate_then_edit.emmet import EMMET
from kedit.methods.locate_then_edit.memit import MEMIT
from kedit.methods.locate_then_edit.pmet import PMET
from kedit.methods.locate_then_edit.rome import ROME
from kedit.methods.locate_then_edit.rrome import RROME
from kedit.methods.memory.grace import GRACE
from kedit.methods.memory.ike import IKE
from kedit.methods.memory.retrieval import Retrieval
from kedit.methods.pac.module import PAC
from kedit.methods.rep.module import REP
from kedit.methods.steam.module import STEAM
from kedit.methods.ultraedit.module import UltraEdit
from kedit.methods.wrappers.prune import PRUNE
from kedit.methods.wrappers.rect import RECT

__all__ = [
    "EMMET",
    "FT",
    "GRACE",
    "IKE",
    "KN",
    "MEMIT",
    "PAC",
    "PMET",
    "PRUNE",
    "RECT",
    "REP",
    "ROME",
    "RROME",
    "STEAM",
    "AlphaEdit",
    "EditingModule",
    "LoRA",
    "LocFT",
    "Retrieval",
    "UltraEdit",
]
