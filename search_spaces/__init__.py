"""What can be chosen, and what it costs: knobs, configs, spaces and cost tables; numpy only."""

from .config import SubnetConfig
from .constraints import check_limits, project, within_limits
from .costs import COST_NAMES, CostTable, Polynomial
from .errors import InvalidInput, SubnetSearchError, nearest_names
from .files import (
    config_from_json,
    config_to_json,
    costs_from_json,
    costs_to_json,
    space_from_json,
    space_to_json,
)
from .knob import RESOLUTION_KNOB, Knob
from .space import SearchSpace

__all__ = [
    "COST_NAMES",
    "RESOLUTION_KNOB",
    "CostTable",
    "InvalidInput",
    "Knob",
    "Polynomial",
    "SearchSpace",
    "SubnetConfig",
    "SubnetSearchError",
    "check_limits",
    "config_from_json",
    "config_to_json",
    "costs_from_json",
    "costs_to_json",
    "nearest_names",
    "project",
    "space_from_json",
    "space_to_json",
    "within_limits",
]
