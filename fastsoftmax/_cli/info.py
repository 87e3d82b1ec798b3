"""``fastsoftmax info``: what runs here."""

from __future__ import annotations

import argparse
from typing import Any

from .. import _config
from ._common import print_json


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the subcommand's arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="what runs here: version, backends, instruction set, threads",
        description="Print what runs here: version, backends, instruction set, threads. Please add it to bug reports.",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the facts."""
    if args.json:
        print_json(_config.config())
    else:
        _config.show_config()
    return 0
