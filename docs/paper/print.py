"""Print the report to a PDF with a headless Chromium, which sets the formulas (MathML) as the site does.

python docs/paper/print.py PAGE.html FILE.pdf
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
)
MISSING = (
    f"No PDF: expected one of {', '.join(BROWSERS)} in PATH, which prints the page. Install Chromium "
    "(`apt-get install chromium`, `brew install --cask chromium`), or print the page from a browser."
)


def main(page: Path, file: Path) -> str:
    """Print a page.

    Returns:
        A sentence: where the PDF is, or what is missing.

    Raises:
        FileNotFoundError: The page has not been built, or the browser has written nothing.
    """
    if not page.exists():
        raise FileNotFoundError(f"Expected {page}: build the site first, as `make paper` does.")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return MISSING
    file.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        settings = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
        command = [browser, *settings, f"--user-data-dir={profile}", f"--print-to-pdf={file.resolve()}"]
        done = subprocess.run(
            [*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=180, check=False
        )
    if not file.exists():
        raise FileNotFoundError(
            f"{browser} ended with {done.returncode} and no {file}:\n{done.stderr[-1000:]}"
        )
    return f"The report: {page} and {file}"


if __name__ == "__main__":
    print(main(*map(Path, sys.argv[1:])))
