"""A headless Chromium, spoken to through two pipes in its own protocol (CDP)."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

#: Chromium listens on its descriptor 3 and answers on 4.
_LAUNCH = """
import fcntl, os, sys
heard, said = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(heard, 3)
os.dup2(said, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def executable():
    """Where one is, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """``with Browser(profile_folder) as browser``: one page. ``said``: what its console, its errors
    and its policy said; ``requested``: every address that it asked for."""

    def __init__(self, folder: Path) -> None:
        self.said, self.requested = [], []
        self._folder, self._calls, self._rest = folder, 0, b""

    def __enter__(self):
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        command = [
            executable(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
            "--remote-debugging-pipe", f"--user-data-dir={self._folder}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(read), str(write), *command],
            pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read)
        os.close(write)
        self._session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self._session = None
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, path, width=1200, height=900, dark=False):
        """Load a file from disk in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=width < 600,
            deviceScaleFactor=1,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.said.clear()
        self.requested.clear()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while self.evaluate("document.readyState") != "complete":
            time.sleep(0.05)

    def evaluate(self, expression):
        """A value of the page's, by JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self, path):
        """The whole page, as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def call(self, method, **parameters):
        """A command of the protocol, and its answer."""
        self._calls += 1
        sent = {"id": self._calls, "method": method, "params": parameters}
        if self._session:
            sent["sessionId"] = self._session
        os.write(self._to, json.dumps(sent).encode() + b"\0")
        while True:
            heard = self._next()
            if heard.get("id") == self._calls:
                assert "error" not in heard, heard["error"]
                return heard["result"]
            self._event(heard)

    def _event(self, heard):
        method, given = heard.get("method", ""), heard.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(a.get("value")) for a in given["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(given["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.said.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requested.append(given["request"]["url"])

    def _next(self, seconds=120):
        while b"\0" not in self._rest:
            if not select.select([self._from], [], [], seconds)[0]:
                raise TimeoutError(f"the browser said nothing for {seconds} s")
            heard = os.read(self._from, 1 << 16)
            if not heard:
                raise EOFError("the browser has gone")
            self._rest += heard
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
