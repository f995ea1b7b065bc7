"""The report: one HTML file that shows whether a detector's scores tell how good its boxes are.

It holds its style, script, figures and pictures, and asks the network for nothing. The same results
give the same file. There is a module for each chapter; :mod:`~corrdet.report.writing` puts them
together, in :mod:`~corrdet.report.page`, with figures by :mod:`~corrdet.report.svg`.
"""

from .training import TrainingFileError, TrainingRun, read_training
from .writing import MAX_BYTES, write_report

__all__ = ["MAX_BYTES", "TrainingFileError", "TrainingRun", "read_training", "write_report"]
