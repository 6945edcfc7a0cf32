"""The documentation site, built once for all tests here, and a browser for it.

They need what docs/requirements.txt names, as `nox -s tests` and `nox -s docs` install it, and are skipped without.
Those in a browser need Playwright, of `nox -s docs` alone, and the system's Chromium.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TOOLS = str(ROOT / "docs" / "tools")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site. A warning of MkDocs is an error: a dead link or anchor, a page that nothing leads to."""
    pytest.importorskip("mkdocs", reason="needs MkDocs: pip install -r docs/requirements.txt")
    side_by_side = "PYTEST_XDIST_WORKER" in os.environ  # two processes must not build into one folder
    folder = tmp_path_factory.mktemp("site") if side_by_side else ROOT / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean", "--site-dir", str(folder)]
    # where anything is asked from the network, this proxy, which nobody is, makes it fail
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | nowhere | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def tools() -> Iterator[None]:
    """docs/tools among the modules, as MkDocs has it there."""
    sys.path.insert(0, TOOLS)
    yield
    sys.path.remove(TOOLS)


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a browser that leaves a page hangs up
            super().handle_error(request, client_address)


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served, on this machine alone."""
    server = _Server(("127.0.0.1", 0), partial(_Silent, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """A browser that is started once."""
    from playwright import sync_api as api  # here: most tests of the site need none

    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()
