"""PAC: which nodes of the feed-forward matrices an edit should move, and what moves them. No Lightning in here."""

from kedit.pac.capture import capture
from kedit.pac.choose import choose, layer_weights, nodes_to_choose_from
from kedit.pac.config import ContrastConfig, KeepConfig, Objective, TrainConfig, parity_train, released
from kedit.pac.keep import Keeper
from kedit.pac.labels import Labelled, argmaxes, encode_request, greedy_answers, labelled
from kedit.pac.profile import Profile
from kedit.pac.rectify import Bias, Part, Rectifier
from kedit.pac.scores import Score, node_scores
from kedit.pac.select import Scores, Selection, TraceConfig, layer_profile, select
from kedit.pac.sides import Sides
from kedit.pac.sites import Site, sites
from kedit.pac.tracing import trace, trace_each
from kedit.pac.training import BATCH, Progress, Request, Steps, look

__all__ = [
    "BATCH",
    "Bias",
    "ContrastConfig",
    "KeepConfig",
    "Keeper",
    "Labelled",
    "Objective",
    "Part",
    "Profile",
    "Progress",
    "Rectifier",
    "Request",
    "Score",
    "Scores",
    "Selection",
    "Sides",
    "Site",
    "Steps",
    "TraceConfig",
    "TrainConfig",
    "argmaxes",
    "capture",
    "choose",
    "encode_request",
    "greedy_answers",
    "labelled",
    "layer_profile",
    "layer_weights",
    "look",
    "node_scores",
    "nodes_to_choose_from",
    "parity_train",
    "released",
    "select",
    "sites",
    "trace",
    "trace_each",
]
