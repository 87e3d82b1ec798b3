"""Build of the compiled backend; everything else stands in pyproject.toml.

The instruction sets are chosen by attributes in the sources, so no file needs flags of its own, and nothing depends on
the machine that builds.  If the extension cannot be compiled, the package installs without it and says so.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

CSRC = Path("csrc")

# Sanitizers on kernels that are inlined to the last line: -O3 would take many minutes, -O1 134 s for kernels_avx2.c
# (AddressSanitizer and UndefinedBehaviorSanitizer), -Og 88.  Without them, debug information that Python's own
# flags ask for would make the extension ten times as large.
OPTIMISE = ["-Og"] if "-fsanitize" in os.environ.get("CFLAGS", "") else ["-O3", "-g0"]

# Contraction would change results behind the error bounds' back; errno and traps are never looked at.
# Not -ffast-math: it breaks NaN handling, and its start-up code would flush subnormals in the whole process.
FLAGS = ["-std=gnu11", *OPTIMISE, "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

native = Extension(
    "fastsoftmax._native",
    sources=[str(CSRC / "_native.pyx"), *sorted(str(path) for path in CSRC.glob("*.c") if path.name != "_native.c")],
    depends=sorted(str(path) for path in CSRC.glob("*.h")),
    include_dirs=[str(CSRC), numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), ("FS_FLAGS", f'"{" ".join(FLAGS)}"')],
    extra_compile_args=FLAGS,
    extra_link_args=["-lm", "-lpthread"],
)


class BuildExt(build_ext):
    """Build if there is a compiler, and leave the extension in the source tree, too, where git ignores it.

    ``python -m fastsoftmax`` and ``python -m pytest`` in a clone find the folder ``fastsoftmax/`` before the installed
    package; without its extension they would run on another backend than the one that has just been installed.
    """

    def build_extensions(self) -> None:
        """Compile the sources side by side: a file per instruction set takes nearly all of the time."""
        compile_some = self.compiler.compile

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_some([source], **options), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_all
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Build the extension, or say what is missing without it."""
        try:
            super().build_extension(ext)
        except (CCompilerError, ExecError, PlatformError) as error:
            print(
                f"fastsoftmax: the compiled backend could not be built ({error}).\n"
                "fastsoftmax: installing without it: the numba and numpy backends remain.  Install gcc or clang and "
                "Python's headers, then install again.",
                file=sys.stderr,
            )
            self.extensions.remove(ext)

    def run(self) -> None:
        """Build, then copy what has been built."""
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()


setup(ext_modules=cythonize([native], build_dir="build"), cmdclass={"build_ext": BuildExt})
