"""The report in a real browser: it opens without network, says nothing on the console, and is not blank."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.report import made
from unforge import report

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
QUIET = ("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0")

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(
        not CHROMIUM.is_file(), reason=f"{CHROMIUM} is not installed (Debian: apt-get install chromium)"
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = made.project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return root / report.write(made.PROFILE)


def browse(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """One visit with an empty profile; everything but loopback resolves to nothing."""
    command = [str(CHROMIUM), *FLAGS, *QUIET, f"--user-data-dir={folder / 'profile'}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def console(stderr: str) -> list[str]:
    """What the page itself put on the console: blocked styles, failed loads, parse errors."""
    return [line for line in stderr.splitlines() if re.search(r"CONSOLE|Refused|ERR_|Content Security Policy", line)]


def test_the_page_is_parsed_whole_and_says_nothing_on_the_console(page: Path, tmp_path: Path) -> None:
    visit = browse(page, tmp_path, "--dump-dom")
    assert console(visit.stderr) == []
    assert visit.stdout.rstrip().endswith("</html>")
    for cell in made.cells():
        assert f'data-row="{cell["row"]}" data-column="{cell["column"]}"' in visit.stdout
    assert visit.stdout.count("<img ") == page.read_text(encoding="utf-8").count("<img ")


def test_a_page_with_a_fetch_would_be_noticed(page: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8").replace("</main>", '<img src="https://example.org/x.png"></main>')
    broken.write_text(text, encoding="utf-8")
    assert console(browse(broken, tmp_path, "--dump-dom").stderr)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_drawn(page: Path, tmp_path: Path, width: int) -> None:
    shot = tmp_path / "page.png"
    browse(page, tmp_path, f"--screenshot={shot}", f"--window-size={width},4000", "--hide-scrollbars")
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape[:2] == (4000, width)
    bands = pixels.reshape(8, 500, width, 3)
    assert (bands.std(axis=(1, 2, 3)) > 5).sum() >= 6, "most of the page holds something"
    colourful = (pixels.max(axis=-1) - pixels.min(axis=-1) > 60).mean()
    assert colourful > 0.0005, "marks, curves or pictures"


def test_nothing_is_wider_than_a_narrow_screen(page: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.html"
    text = page.read_text(encoding="utf-8").replace(
        "default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'"
    )
    script = "<script>document.title='width '+document.documentElement.scrollWidth+' '+innerWidth</script></body>"
    probe.write_text(text.replace("</body>", script), encoding="utf-8")
    visit = browse(probe, tmp_path, "--dump-dom", "--window-size=500,900")
    found = re.search(r"<title>width (\d+) (\d+)</title>", visit.stdout)
    assert found
    assert int(found[1]) <= int(found[2])
