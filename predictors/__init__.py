"""Learned stand-ins for slow measurements, which know when not to be trusted; numpy and scikit-learn, no torch."""

from .accuracy import AccuracyPredictor
from .base import Predictor
from .families import FAMILIES
from .features import Features
from .intervals import cv_plus, split_conformal
from .quality import coverage, kendall_tau, learning_curve, share_within, tau_near

__all__ = [
    "FAMILIES",
    "AccuracyPredictor",
    "Features",
    "Predictor",
    "coverage",
    "cv_plus",
    "kendall_tau",
    "learning_curve",
    "share_within",
    "split_conformal",
    "tau_near",
]
