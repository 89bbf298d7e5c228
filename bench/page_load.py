"""How long a browser takes for a report: python -m bench.page_load runs/NAME/TIME/samples/TIME/report.html

Milliseconds from the start of the navigation, medians of several browsers that are started anew: to the load event, and
until the first picture of the images, scrolled to at once, is on the screen; beside an empty page, which says how fast
browser and machine are. Needs Chromium or Chrome.
"""

from __future__ import annotations

from utils.command import run_command

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Empty, Queue

import numpy as np

from utils.cli import Parser
from utils.errors import UsageError

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0",
           "--disable-background-networking", "--window-size=1280,900"]  # fmt: skip
EMPTY = "<!doctype html><html><head></head><body></body></html>"
PATIENCE = 60  # seconds for one page
WATCH = """<script>addEventListener("load", async () => {
  const load = performance.now(), picture = document.querySelector(".card img");
  if (picture) { picture.scrollIntoView(); await picture.decode(); }
  requestAnimationFrame(() => setTimeout(() => {
    fetch("/", { method: "POST", body: JSON.stringify([load, performance.now()]) });
  }));
});</script>"""


class Served(BaseHTTPRequestHandler):
    """Pages by their paths, and what they say of themselves."""

    def __init__(self, pages: dict[str, str], told: Queue[list[float]], *given: object) -> None:
        self.pages, self.told = pages, told
        super().__init__(*given)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        page = self.pages.get(self.path)
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write((page or "").replace("<head>", f"<head>{WATCH}", 1).encode())

    def do_POST(self) -> None:
        self.told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def browser_there() -> str | None:
    """The path of a browser, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def timed(browser: str, url: str, told: Queue[list[float]]) -> list[float]:
    """Milliseconds to the load event and to the first picture. Raises UsageError if the browser says nothing."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, *OPTIONS, f"--user-data-dir={profile}", url]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return told.get(timeout=PATIENCE)
        except Empty:
            raise UsageError(f"{browser}: the page has not loaded in {PATIENCE} s") from None
        finally:
            running.terminate()
            running.wait()


def measure(path: Path, rounds: int) -> np.ndarray:
    """Medians (2, 2): of the page and of an empty one, by turns. Raises UsageError without a browser or a page."""
    browser = browser_there()
    if browser is None:
        raise UsageError(f"bench.page_load: needs one of {', '.join(BROWSERS)} on the PATH")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    pages = {"/page": path.read_text("utf-8"), "/empty": EMPTY}
    told: Queue[list[float]] = Queue()
    with HTTPServer(("127.0.0.1", 0), partial(Served, pages, told)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_port}"
        times = [[timed(browser, where + name, told) for name in pages] for _ in range(rounds)]
        server.shutdown()
    return np.asarray(np.median(times, axis=0))


def main(argv: list[str] | None = None) -> None:
    parser = Parser("Milliseconds until a report is loaded and its first picture is seen, in Chromium or Chrome.")
    parser.add_argument("report", type=Path, metavar="HTML", help="report.html of a sampling or a prediction")
    parser.add_argument("--rounds", type=int, default=5, help="browsers that are started; default: 5")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        raise UsageError("--rounds: at least 1")
    (load, picture), (empty, _) = measure(args.report, args.rounds)
    print(f"{args.report}: {args.report.stat().st_size / 1e6:.1f} MB, load event after {load:.0f} ms, first picture "
          f"after {picture:.0f} ms; an empty page: {empty:.0f} ms")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(main))
