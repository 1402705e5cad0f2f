"""Learned stand-ins for slow measurements, which know when not to be trusted; numpy and scikit-learn, no torch."""

from .accuracy import AccuracyPredictor
from .base import Predictor
from .families import FAMILIES
from .features import Features
from .intervals import cv_plus, split_conformal
from .latency import LatencyPredictor
from .latency_outlook import Outlook, Quality, cross_validated, outlook
from .quality import coverage, kendall_tau, learning_curve, share_within, tau_near
from .transfer import TransferPredictor, learn_devices

__all__ = [
    "FAMILIES",
    "AccuracyPredictor",
    "Features",
    "LatencyPredictor",
    "Outlook",
    "Predictor",
    "Quality",
    "TransferPredictor",
    "coverage",
    "cross_validated",
    "cv_plus",
    "kendall_tau",
    "learn_devices",
    "learning_curve",
    "outlook",
    "share_within",
    "split_conformal",
    "tau_near",
]
