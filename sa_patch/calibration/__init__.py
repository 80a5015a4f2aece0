"""Calibration: the best plan for a model on a text, at a measured budget."""

from sa_patch.calibration.calibrate import calibrate, check
from sa_patch.calibration.outcomes import Calibration, Outcome

__all__ = ["Calibration", "Outcome", "calibrate", "check"]
