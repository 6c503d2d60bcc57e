"""Row 05 on Bookinfo itself: the page gives up on reviews and says so."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from examples.bookinfo.productpage.backends import UNAVAILABLE
from examples.demo.stage import Stage
from examples.demo.topology import PROGRAMS
from tests.support.programs import require_data

SENTENCE = "Sorry, product reviews are currently unavailable for this book."
_NEEDED = {"productpage-v1", "details-v1", "reviews-v2", "ratings-v1"}


async def test_05_the_page_gives_up_after_two_tries_of_three_seconds(tmp_path: Path) -> None:
    assert UNAVAILABLE["reviews"] == SENTENCE
    stage = Stage(tmp_path / "stage")
    stage.programs = tuple(program for program in PROGRAMS if program.name in _NEEDED)
    for pattern in ("00*.yaml", "05*.yaml"):
        (file,) = require_data("seed-config").glob(pattern)
        shutil.copy(file, stage.configuration.directory)
    # The demo's subsets are the same as those of the day-one configuration.
    (stage.configuration.directory / "subsets.yaml").unlink()
    try:
        await stage.start()
        began = time.monotonic()
        answer = await stage.http.get("http://productpage:9080/productpage")
        seconds = time.monotonic() - began
    finally:
        await stage.stop()
    assert answer.status_code == 200
    assert SENTENCE in answer.text
    assert 6 <= seconds < 10
