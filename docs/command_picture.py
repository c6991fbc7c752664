"""README's picture of the command: `python docs/command_picture.py` runs it, and draws what it prints.

Output is shortened: of the lines of progress the first, one in the middle and the last are kept, and of each
warning its first words. Below stands the picture of the run's report.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

TO = Path(__file__).parent / "images" / "command.png"
COMMANDS = "blackbox new pump --kind design", "blackbox run pump.py --rows 1000"
WIDE, SIZE, LINE, EDGE = 95, 20, 27, 12  # characters; a letter, a line and an edge in pixels
BACK, TEXT, TYPED, WARNED = "#1f2329", "#c9d1d9", "#ffffff", "#e0a458"
STEP, WARNING = "seed-0/population: step ", "blackbox: warning: "


def main() -> None:
    """Run both commands in an empty folder, and draw."""
    with tempfile.TemporaryDirectory() as folder:
        for words in COMMANDS:
            command = [str(Path(sys.executable).parent / "blackbox"), *words.split()[1:]]
            done = subprocess.run(
                command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
            )
        lines = shown(done.stdout.splitlines())
        (picture,) = Path(folder).glob("runs/*/picture-1.png")
        draw([(f"$ {words}", TYPED) for words in COMMANDS] + lines, picture)


def shown(printed: Sequence[str]) -> list[tuple[str, str]]:
    """The lines that are kept, with the colour of each."""
    steps = [line for line in printed if line.startswith(STEP)]
    kept = {steps[0], steps[len(steps) // 2], steps[-1]}
    lines = []
    for line in printed:
        if (line.startswith(STEP) and line not in kept) or "derivative of the box" in line:
            continue
        if line.startswith(WARNING):
            lines.append((textwrap.shorten(line, WIDE - 6, placeholder=" ..."), WARNED))
        elif not line.startswith("Run folder"):
            parts = textwrap.wrap(line, WIDE, subsequent_indent="  ", drop_whitespace=True)
            whole = [line] if line[:1] in "┏┃┡│└" else parts
            lines += [(part, WARNED if " with methods, seeds" in line else TEXT) for part in whole]
    return lines


def draw(lines: Sequence[tuple[str, str]], picture: Path) -> None:
    """Write the image: a terminal, and the report's picture below."""
    fonts = [
        ImageFont.truetype(
            font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans Mono", weight=weight)), SIZE
        )
        for weight in ("normal", "bold")
    ]
    below = Image.open(picture).convert("RGB")
    width = int(2 * EDGE + WIDE * fonts[0].getlength("m"))
    below = below.resize((3 * width // 5, below.height * (3 * width // 5) // below.width))
    terminal = 2 * EDGE + LINE * len(lines)
    image = Image.new("RGB", (width, terminal + below.height + EDGE), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 0, width, terminal), fill=BACK)
    for number, (line, colour) in enumerate(lines):
        pen.text((EDGE, EDGE + LINE * number), line, fill=colour, font=fonts[colour == TYPED])
    image.paste(below, ((width - below.width) // 2, terminal + EDGE // 2))
    image.quantize(64).save(TO, optimize=True)


if __name__ == "__main__":
    main()
