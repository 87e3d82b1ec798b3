"""The command line: ``fastsoftmax``, also ``python -m fastsoftmax``.

One module per subcommand, each with ``add_parser`` (its arguments) and ``run`` (its work; returns the exit status).
What only some of them need (SciPy, matplotlib, the peers of ``bench``) is imported when it is needed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from .. import _backends, _threads
from .._version import __version__
from . import bench, demo, info, score
from ._common import CliError, JobError

_DESCRIPTION = "Fast, exact softmax, its derivatives and cross-entropy on NumPy arrays."

_EPILOG = """\
examples:
  fastsoftmax demo
  fastsoftmax score logits.npy labels.npy --probs p.npy --plot plot.png
  fastsoftmax bench --shape 4096,1000 --op softmax
  fastsoftmax info --json

`fastsoftmax COMMAND --help` explains a command.  The environment variables
FASTSOFTMAX_BACKEND (auto, cython, numba or numpy) and FASTSOFTMAX_NUM_THREADS
choose what computes.

exit status:
  0 done
  1 the job failed: a check does not hold, say, or the disk is full
  2 wrong usage or input
  130 interrupted
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        raise CliError(f"{message} (see: {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="fastsoftmax", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"fastsoftmax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (demo, score, bench, info):
        command = module.add_parser(commands)
        command.add_argument("--json", action="store_true", help="print the results as JSON instead of text")
        command.set_defaults(run=module.run)
    return parser


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    """Turn the signals that end a process into an exception, so that temporary files are removed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def leave(number: int, _: Any) -> NoReturn:
        raise SystemExit(128 + number)

    # A signal that is ignored stays so: that is how nohup works.
    ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _complain(message: object) -> None:
    print("fastsoftmax: error:", " ".join(str(message).split()), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; default those of the process.

    Returns
    -------
    int
        The exit status: 0 done, 1 the job failed, 2 wrong usage or input, 130 interrupted, 141 nobody reads the output.
    """
    try:
        with _termination_unwinds():
            args = _parser().parse_args(argv)
            _check_environment()
            status: int = args.run(args)
            sys.stdout.flush()
            return status
    except CliError as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends; let that go nowhere, quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        _complain(f"not enough memory: {error}")
        return 1
    except (JobError, OSError) as error:
        _complain(error)
        return 1


def _check_environment() -> None:
    """Report a backend or a number of threads that the environment asks for in vain, before any work."""
    try:
        _backends.current()
        _threads.get_num_threads()
    except (ImportError, ValueError) as error:
        raise CliError(error) from None
