"""From a plain network to a supernet, and from the supernet back to plain networks."""

from subnet_search.elastic.convert import make_elastic
from subnet_search.elastic.custom import Passes, register_rule
from subnet_search.elastic.extraction import ExtractionError, apply_plan, extract, layer_plan
from subnet_search.elastic.graph import UntraceableModelError
from subnet_search.elastic.knobs import EmptySpaceError
from subnet_search.elastic.statistics import Statistics, load_statistics, recalibrate, save_statistics
from subnet_search.elastic.supernet import Ranking, Supernet

__all__ = [
    "EmptySpaceError",
    "ExtractionError",
    "Passes",
    "Ranking",
    "Statistics",
    "Supernet",
    "UntraceableModelError",
    "apply_plan",
    "extract",
    "layer_plan",
    "load_statistics",
    "make_elastic",
    "recalibrate",
    "register_rule",
    "save_statistics",
]
