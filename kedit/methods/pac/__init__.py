"""PAC: which nodes of the feed-forward matrices an edit should move, and what moves them. No Lightning in here."""

from kedit.methods.pac.config import (
    ContrastConfig,
    LocalityConfig,
    Objective,
    TrainConfig,
    checked,
    parity_train,
    released,
)
from kedit.methods.pac.labels import Labelled, argmaxes, encode_request, greedy_answers, labelled
from kedit.methods.pac.locality import LocalityTerm
from kedit.methods.pac.rectify import Bias, Part, Rectifier
from kedit.methods.pac.requests import BATCH, Progress, Request, requests_of, score_requests
from kedit.methods.pac.tracing.capture import capture
from kedit.methods.pac.tracing.choose import choose, layer_weights, nodes_to_choose_from
from kedit.methods.pac.tracing.profile import Profile
from kedit.methods.pac.tracing.scores import Score, node_scores
from kedit.methods.pac.tracing.select import Scores, Selection, TraceConfig, layer_profile, select
from kedit.methods.pac.tracing.sites import Site, sites
from kedit.methods.pac.tracing.trace import trace, trace_each
from kedit.methods.pac.trainable import TrainableNodes
from kedit.methods.pac.training import RectifyLoop

__all__ = [
    "BATCH",
    "Bias",
    "ContrastConfig",
    "Labelled",
    "LocalityConfig",
    "LocalityTerm",
    "Objective",
    "Part",
    "Profile",
    "Progress",
    "Rectifier",
    "RectifyLoop",
    "Request",
    "Score",
    "Scores",
    "Selection",
    "Site",
    "TraceConfig",
    "TrainConfig",
    "TrainableNodes",
    "argmaxes",
    "capture",
    "checked",
    "choose",
    "encode_request",
    "greedy_answers",
    "labelled",
    "layer_profile",
    "layer_weights",
    "node_scores",
    "nodes_to_choose_from",
    "parity_train",
    "released",
    "requests_of",
    "score_requests",
    "select",
    "sites",
    "trace",
    "trace_each",
]
