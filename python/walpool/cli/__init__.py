"""The command line: `walpool COMMAND`, the same as `python -m walpool COMMAND`. A file for each subject."""

from walpool.cli._command import Command, Group
from walpool.cli._main import COMMANDS, main

__all__ = ["COMMANDS", "Command", "Group", "main"]
