"""Build, show and picture the dashboard of benchmarks; compare two commits.

``build`` lets asv measure the last commits, each in an environment made from the commit's wheel, publishes the results
as a web site and makes that self-contained: asv's page loads jQuery, flot and Bootstrap from public servers and stays
blank without a network.  It needs asv and virtualenv (``pip install "fastsoftmax[bench]"``), a C compiler for the
wheels and npm for the packages; ``picture`` needs Chromium.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
SITE = HERE / "html"
PACKAGES = HERE / "env" / "npm"

# asv names a parameter value by its repr, with quotes.
_FEW = r"'(8x10|128x1000|6000000x10|60000x1000)'\)"
QUICK = (
    rf"^ops\.(softmax|logsumexp|cross_entropy_index_grad|softmax_jvp)\.time_call\('\w+-float32-cython', {_FEW}",
    r"^ops\.softmax\.time_call\('softmax-float32-numba', '(8x10|128x1000|60000x1000)'\)",
    r"^ops\.(softmax|cross_entropy_index_grad)\.track_memcpy\('\w+-float32-cython', '(6000000x10|60000x1000)'\)",
    r"^ops\.softmax\.track_speedup_\w+\('softmax-float32-cython', '(128x1000|60000x1000)'\)",
    r"^ops\.(softmax|cross_entropy_index_grad)\.(track_ulp|peakmem_call)\('\w+-float32-cython', '60000x1000'\)",
    r"^memory\.(softmax|cross_entropy_index_grad)\.track_excess\('\w+-float32-cython', '60000x1000'\)",
    r"^overhead\.(softmax|logsumexp|cross_entropy_index_grad)\.\w+\('\w+-float32-cython'\)",
    r"^process\.Import",
    r"^process\.FirstCall\.track_seconds\('softmax'",
)
QUICK_COMPARE = (QUICK[0],)

# What asv's page loads: by file name, the package on npm, the file in it, and its SHA-256.
LOADED = {
    "jquery-3.3.1.min.js": (
        "jquery@3.3.1",
        "dist/jquery.min.js",
        "160a426ff2894252cd7cebbdd6d6b7da8fcd319c65b70468f10b6690c45d02ef",
    ),
    "jquery.flot.min.js": (
        "flot@0.8.3",
        "jquery.flot.js",
        "b7b931f273c38b1277b9c6c1f4e05c4ec09885a487bddaf3279e2d7e49a38e12",
    ),
    "jquery.flot.time.min.js": (
        "flot@0.8.3",
        "jquery.flot.time.js",
        "a582c832adc7138a6b05aaf61f16ebac274701f1be4afea77e739a1c34b9c41a",
    ),
    "jquery.flot.selection.min.js": (
        "flot@0.8.3",
        "jquery.flot.selection.js",
        "e6c85f6c1ebe4b4da29d8ae238c7c5060283f05f7ef054f6b91817d02c092918",
    ),
    "jquery.flot.categories.min.js": (
        "flot@0.8.3",
        "jquery.flot.categories.js",
        "6e81664b28ea795c734906f4aa15614640a75ac7fbd399a7fb9084040698351a",
    ),
    "jquery.flot.orderBars.js": (
        "flot-orderbars@1.0.0",
        "js/jquery.flot.orderBars.js",
        "39735b4f46f96ff4e082572401f47c55a2767b366fd1d1e821e44a8d830a12bf",
    ),
    "stupidtable.min.js": (
        "stupid-table-plugin@1.1.3",
        "stupidtable.min.js",
        "4642380f28ebe9ed7cac251793b281ef8620c4386205d92788f9b12f5cceb4e0",
    ),
    "md5.min.js": (
        "blueimp-md5@2.19.0",
        "js/md5.min.js",
        "64d7ded388c562e4bde9e58ce205e5fa01b9734fcd434d496eb7b4fbfe9b927d",
    ),
    "bootstrap.min.js": (
        "bootstrap@3.1.1",
        "dist/js/bootstrap.min.js",
        "898d05a17f2cfc5120ddcdba47a885c378c0b466f30f0700e502757e24b403a1",
    ),
    "bootstrap.min.css": (
        "bootstrap@3.1.1",
        "dist/css/bootstrap.min.css",
        "e9503448692b738dd260fbd7f7cabf2e11f09b600fa97e6eb3a56eba5b1a7e9b",
    ),
}


class DashboardError(Exception):
    """Something is missing or wrong: one line on stderr, exit status 2."""


# --- asv ----------------------------------------------------------------------------------------------------------


def asv(*args: str, ok: Sequence[int] = (0,), capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run asv in this folder."""
    command = [sys.executable, "-m", "asv", *args]
    done = subprocess.run(command, cwd=HERE, check=False, text=True, stdout=subprocess.PIPE if capture else None)
    if done.returncode not in ok:
        raise DashboardError(f"asv {args[0]} failed with status {done.returncode}")
    return done


def configuration(extra: Sequence[str]) -> str:
    """Return the path of asv's configuration, with these packages added to the environment."""
    path = HERE / "asv.conf.json"
    if not extra:
        return str(path)
    lines = path.read_text().splitlines()
    config = json.loads("\n".join(line for line in lines if not line.lstrip().startswith("//")))
    config["matrix"]["req"] |= {name: [version] for name, _, version in (word.partition("==") for word in extra)}
    for key in ("repo", "benchmark_dir", "env_dir", "results_dir", "html_dir"):
        config[key] = str((HERE / config[key]).resolve())
    (HERE / "env").mkdir(exist_ok=True)
    copy = HERE / "env" / "asv.conf.json"
    copy.write_text(json.dumps(config, indent=4))
    return str(copy)


def commits(*args: str) -> list[str]:
    """Return commit hashes, newest first, as ``git rev-list`` gives them."""
    done = subprocess.run(["git", "rev-list", *args], cwd=HERE, check=False, capture_output=True, text=True)
    if done.returncode:
        raise DashboardError(" ".join(done.stderr.split()))
    return done.stdout.split()


def measure(config: str, hashes: Sequence[str], bench: Sequence[str], *options: str) -> None:
    """Let asv measure commits; benchmarks that fail on one of them are asv's to report, and no error here."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(hashes))
        file.flush()
        chosen = [f"--bench={regex}" for regex in bench]
        asv("run", f"HASHFILE:{file.name}", "--config", config, *chosen, *options, ok=(0, 2))


def build(args: argparse.Namespace) -> int:
    """Measure the last commits, newest first, publish the results, make the site self-contained."""
    config = configuration(args.extra)
    asv("machine", "--yes", "--config", config, capture=True)
    bench = args.bench or ([] if args.full else QUICK)
    options = [] if args.full else ["--attribute=rounds=1"]
    if not args.again:
        options.append("--skip-existing-commits")
    start, longest = time.monotonic(), 0.0
    chosen = commits("--first-parent", "main")[:: args.every][: args.commits]
    for k, commit in enumerate(chosen):
        begun = time.monotonic()
        if k and begun - start + longest > args.minutes * 60:
            print(f"{args.minutes:g} minutes are over: {len(chosen) - k} commits are left out", file=sys.stderr)
            break
        try:
            measure(config, [commit], bench, *options)
        except DashboardError as error:
            print(f"commit {commit[:8]} is left out: {error}", file=sys.stderr)
        longest = max(longest, time.monotonic() - begun)
    asv("publish", "--config", config)
    leave_out_unmeasured(SITE)
    make_self_contained(SITE)
    print(f"the dashboard is {SITE / 'index.html'}; to look at it: python {Path(__file__).name} serve")
    return 0


def compare(args: argparse.Namespace) -> int:
    """Measure two commits in turns; return 1 if the second is slower beyond noise, or fails where the first did not."""
    config = configuration(args.extra)
    asv("machine", "--yes", "--config", config, capture=True)
    base, head = commits("--no-walk=unsorted", args.base, args.head)
    bench = args.bench or QUICK_COMPARE
    measure(config, [base, head], bench, "--interleave-rounds", f"--attribute=rounds={args.rounds}")
    done = asv("compare", "--config", config, f"--factor={args.factor}", "--only-changed", base, head, capture=True)
    changed = chosen_rows(done.stdout, bench)
    worse = [row for row in changed if re.match(r"\|\s*[+!]\s", row)]  # slower, or failing where it did not
    print("\n".join(["", *changed, "", f"worse by a factor of {args.factor:g} or more, beyond noise: {len(worse)}"]))
    return 1 if worse else 0


def chosen_rows(table: str, bench: Sequence[str]) -> list[str]:
    """Return the head of asv's comparison, and its rows for the chosen benchmarks; it has all that have results."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return lines[:2] + [
        row for row in lines[2:] if any(re.search(regex, row.split("|")[-2].strip()) for regex in bench)
    ]


# --- the site -----------------------------------------------------------------------------------------------------

_TAG = re.compile(r"<(script|link|img|iframe)\b[^>]*?\b(?:src|href)\s*=\s*[\"'](?:https?:)?//([^\"']+)[\"'][^>]*>")
_CSS = re.compile(r"(?:url\(\s*[\"']?|@import\s+[\"'])(?:https?:)?//[^)\"']+")


def loaded_from_elsewhere(site: Path) -> list[str]:
    """Return what the site's pages and style sheets load from other servers."""
    found = []
    for path in sorted(site.rglob("*.html")) + sorted(site.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name}: {match[0]}" for match in (*_TAG.finditer(text), *_CSS.finditer(text))]
    return found


def fetch(name: str) -> bytes:
    """Return one of the files that asv's page loads, from its package, which npm fetches once."""
    package, member, digest = LOADED[name]
    PACKAGES.mkdir(parents=True, exist_ok=True)
    archive = PACKAGES / f"{package.replace('@', '-')}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise DashboardError("npm is not on the PATH; it fetches what asv's page would load from public servers")
        command = [npm, "pack", "--silent", "--pack-destination", str(PACKAGES), package]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode or not archive.exists():
            raise DashboardError(f"npm pack {package} failed")
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{member}")
        content = b"" if file is None else file.read()
    if hashlib.sha256(content).hexdigest() != digest:
        raise DashboardError(f"{package} holds another {member} than expected")
    return content


def leave_out_unmeasured(site: Path) -> None:
    """Take the benchmarks that have no results from the site's index: they would be empty frames."""
    index = site / "index.json"
    data = json.loads(index.read_text())
    summaries = (site / "graphs" / "summary").glob("*.json")
    measured = {path.stem for path in summaries if any(value is not None for _, value in json.loads(path.read_text()))}
    data["benchmarks"] = {name: value for name, value in data["benchmarks"].items() if name in measured}
    index.write_text(json.dumps(data))


def make_self_contained(site: Path) -> None:
    """Put the files that the site's pages load from other servers beside them, and check that none is left."""
    vendor = site / "vendor"
    vendor.mkdir(exist_ok=True)

    def local(match: re.Match[str]) -> str:
        name = match[2].rpartition("/")[2]
        if name not in LOADED:
            raise DashboardError(f"asv's page loads {name}, which dashboard.py does not know; this is asv 0.6.6's list")
        (vendor / name).write_bytes(fetch(name))
        if match[1] == "script":
            return f'<script src="vendor/{name}">'
        return f'<link rel="stylesheet" href="vendor/{name}">'

    for page in site.glob("*.html"):
        page.write_text(_TAG.sub(local, page.read_text(encoding="utf-8")), encoding="utf-8")
    left = loaded_from_elsewhere(site)
    if left:
        raise DashboardError(f"the site still loads {left[0]}")


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site without a word."""

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def _server(port: int) -> http.server.ThreadingHTTPServer:
    if not (SITE / "index.html").exists():
        raise DashboardError("there is no dashboard yet; run: dashboard.py build")
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Handler, directory=str(SITE)))
    except OSError as error:
        raise DashboardError(f"port {port}: {error}") from None


def serve(args: argparse.Namespace) -> int:
    """Serve the site until interrupted."""
    with _server(args.port) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends)", flush=True)
        server.serve_forever()
    return 0


# --- the picture --------------------------------------------------------------------------------------------------


def page(benchmark: str, **parameters: Sequence[str]) -> str:
    """Return the address of a benchmark's page with these values of its parameters chosen, on a logarithmic scale."""
    chosen = [f"p-{name}={quote(repr(value))}" for name, values in parameters.items() for value in values]
    return f"#{benchmark}?{'&'.join([*chosen, 'y-axis-scale=log'])}"


PAGE = page(
    "ops.softmax.time_call",
    case=("softmax-float32-cython", "softmax-float32-numba"),
    shape=("8x10", "128x1000", "60000x1000"),
)


@contextlib.contextmanager
def _serving() -> Iterator[str]:
    with _server(0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def picture(args: argparse.Namespace) -> int:
    """Let Chromium open a page of the site, without a network, and save what it shows; fail if it logs an error."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise DashboardError("Chromium is not on the PATH; on Debian: apt-get install chromium")
    out = args.out.resolve()
    out.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as profile, _serving() as address:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-logging=stderr",
            f"--user-data-dir={profile}", f"--window-size={args.size}", "--virtual-time-budget=20000",
            f"--screenshot={out}", address + args.page,
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)
    # Not counted: pages of Chromium's own, which are open beside ours and complain that there is no network.
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "source: chrome://" not in line]
    if done.returncode or not out.exists():
        raise DashboardError(f"Chromium took no picture, status {done.returncode}: {done.stderr[-300:]}")
    if said:
        raise DashboardError(f"the page's console is not empty: {said[0]}")
    print(f"wrote {out}; the console stayed empty")
    return 0


# --- the command --------------------------------------------------------------------------------------------------


def positive(text: str) -> int:
    """Read a number of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Any) -> Any:
        text = (run.__doc__ or "").partition("\n")[0]
        sub = commands.add_parser(run.__name__, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    some = {"action": "append", "default": [], "metavar": "REGEX", "help": "benchmarks, as asv's --bench; repeatable"}
    more = {
        "action": "append",
        "default": [],
        "metavar": "PACKAGE[==VERSION]",
        "dest": "extra",
        "help": "also install, to compare with: torch",
    }

    sub = command(build)
    sub.add_argument("--commits", type=positive, default=5, metavar="N", help="how many, of branch main (default: 5)")
    sub.add_argument("--every", type=positive, default=1, metavar="K", help="every K-th of them only (default: 1)")
    sub.add_argument("--bench", **some)
    sub.add_argument("--full", action="store_true", help="every benchmark, in two rounds: hours; not a quick choice")
    sub.add_argument("--again", action="store_true", help="measure also the commits that have results")
    sub.add_argument("--minutes", type=float, default=10, metavar="M", help="begin no commit that would end later")
    sub.add_argument("--with", **more)

    sub = command(compare)
    sub.add_argument("base", metavar="BASE")
    sub.add_argument("head", metavar="HEAD")
    sub.add_argument("--factor", type=float, default=1.15, metavar="F", help="what is no noise (default: 1.15)")
    sub.add_argument("--rounds", type=positive, default=2, metavar="N", help="turns of each commit (default: 2)")
    sub.add_argument("--bench", **some)
    sub.add_argument("--with", **more)

    sub = command(serve)
    sub.add_argument("--port", type=int, default=8000, help="(default: 8000)")

    sub = command(picture)
    sub.add_argument("out", type=Path, metavar="OUT.png")
    sub.add_argument("--page", default=PAGE, metavar="HASH", help="of the address; '' is the grid (default: softmax)")
    sub.add_argument("--size", default="1400,850", metavar="W,H", help="(default: 1400,850)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command."""
    args = parse(argv)
    try:
        status: int = args.run(args)
    except DashboardError as error:
        print("dashboard.py: error:", error, file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
