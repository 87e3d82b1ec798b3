"""Run SciPy's own tests of softmax, log_softmax and logsumexp, from the installed SciPy, on ``fastsoftmax.special``.

    python tools/run_scipy_tests.py [pytest's options]

No test is left out.  Those of complex input (:func:`is_complex`) have to end in a TypeError that says so, and count as
expected failures.  Without ``SCIPY_ARRAY_API`` in the environment, SciPy runs its tests on NumPy arrays only.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import scipy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fastsoftmax import special

# Tests of complex input whose parameters do not tell so.
COMPLEX = ("test_logsumexp_complex_sign", "test_gh21709_small_imaginary")


def is_complex(item: pytest.Item) -> bool:
    """Tell whether a test computes with complex numbers: by its parameters, values or names of dtypes, or its name."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return item.name.partition("[")[0] in COMPLEX or any(
        isinstance(value, complex) or str(value).startswith("complex") for value in params.values()
    )


class Substitution:
    """The plugin that puts our functions into the module of tests, once SciPy's decorators have seen SciPy's."""

    def __init__(self) -> None:
        self.substituted: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Substitute the functions, and mark the tests of complex input."""
        for item in items:
            for name in special.__all__:
                if hasattr(item.module, name):
                    setattr(item.module, name, getattr(special, name))
                    self.substituted.add(name)
            if is_complex(item):
                item.add_marker(pytest.mark.xfail(raises=TypeError, strict=True, reason="complex input is a TypeError"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        """Fail a test of complex input whose TypeError does not say so."""
        try:
            return (yield)
        except TypeError as error:
            if is_complex(item) and "has dtype complex" not in str(error):
                raise AssertionError("the TypeError does not name the complex dtype") from error
            raise

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say which tests were those of complex input."""
        names = Counter(
            report.nodeid.rpartition("::")[2].partition("[")[0] for report in terminalreporter.stats["xfailed"]
        )
        terminalreporter.section("of complex input: a TypeError, as it has to be")
        for name, count in names.items():
            terminalreporter.write_line(f"{name}: {count}")


def main(options: list[str]) -> int:
    """Run the tests; return pytest's exit status."""
    os.environ.pop("SCIPY_ARRAY_API", None)
    plugin = Substitution()
    # No configuration: ours is for our tests, and SciPy's wheel has none.
    root = Path(scipy.__path__[0])
    alone = ["-c", os.devnull, "--rootdir", str(root), "--confcutdir", str(root), "-p", "no:cacheprovider"]
    status = pytest.main([*alone, "-q", str(root / "special" / "tests" / "test_logsumexp.py"), *options], [plugin])
    if plugin.substituted != set(special.__all__):
        print(f"not tested: {sorted(set(special.__all__) - plugin.substituted)}", file=sys.stderr)
        return 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
