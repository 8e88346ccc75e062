"""Copying what others stored, and comparing it afterwards: what every import of walpool's has in common.

Knows no framework and no file format: they say what is there, and where it goes.
"""

from walpool.copying._records import RecordCopy, Refused, canonical
from walpool.copying._report import Checksum, Difference, Part, Progress, Report, Ticker, jobs
from walpool.copying._source import SourceFile

__all__ = [
    "Checksum",
    "Difference",
    "Part",
    "Progress",
    "RecordCopy",
    "Refused",
    "Report",
    "SourceFile",
    "Ticker",
    "canonical",
    "jobs",
]
