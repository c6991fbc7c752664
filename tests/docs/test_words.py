"""`docs/words.py` finds fragments, participles, numbers and long sentences, but not in tables and code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "words.py"
MODULE = '''"""Return rows."""


def rows(box):
    """What the box returns."""
    before = box()
    answer = before
    return answer


def cost(box):
    """Return the cost.

    {long}
    """
'''
PAGE = """# Title

Ten words and one number, 3.5, are in this line.

| a table | 1 | 2 |
| --- | --- | --- |

    code = 7

```python
x = 8
```

{long}
"""


def test_words_lists_each_finding_with_its_place(tmp_path):
    words = " ".join(["word"] * 46) + "."
    (tmp_path / "module.py").write_text(MODULE.replace("{long}", f"S{words}"), encoding="utf-8")
    (tmp_path / "page.md").write_text(PAGE.replace("{long}", f"S{words}"), encoding="utf-8")
    command = [sys.executable, str(SCRIPT), "--list", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    places = [
        line.removeprefix(f"{tmp_path}/") for line in printed.splitlines() if line.startswith(str(tmp_path))
    ]
    assert [":".join(place.split(":")[:3]) for place in places if "Ten" not in place] == [
        "module.py:5: fragment",
        "module.py:14: long sentence",
        "module.py:6: participle",
        "page.md:14: long sentence",
    ]
    assert [place for place in places if "Ten" in place] == [
        "page.md:3: number: Ten words and one number, 3.5, are in this line."
    ]
    assert "33.3 %" in printed and "50.0 %" in printed
