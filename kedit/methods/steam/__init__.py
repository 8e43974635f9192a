"""STEAM's semantic anchors: how a model represents an object that it knows (specs/steam.md 3, 6, 7.3)."""

from kedit.methods.steam.bank import AnchorBank, probe_of
from kedit.methods.steam.config import AlignConfig, AnchorConfig
from kedit.methods.steam.knowledge import read_knowledge, read_templates
from kedit.methods.steam.layers import align_layers
from kedit.methods.steam.pool import Pool, Reference, references_of
from kedit.methods.steam.positioning import Anchor, Leaks, position
from kedit.methods.steam.probe import LayerProbe, Within, best_window, probe, telling, within
from kedit.methods.steam.sampling import stratified

__all__ = [
    "AlignConfig",
    "Anchor",
    "AnchorBank",
    "AnchorConfig",
    "LayerProbe",
    "Leaks",
    "Pool",
    "Reference",
    "Within",
    "align_layers",
    "best_window",
    "position",
    "probe",
    "probe_of",
    "read_knowledge",
    "read_templates",
    "references_of",
    "stratified",
    "telling",
    "within",
]
