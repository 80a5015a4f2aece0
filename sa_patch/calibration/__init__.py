"""Calibration: the best plan for a model on a text, at a measured budget."""

from sa_patch.calibration.calibrate import Calibration, Outcome, calibrate, check

__all__ = ["Calibration", "Outcome", "calibrate", "check"]
