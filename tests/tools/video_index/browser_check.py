"""Use the page of `allinone app` in Chromium as a user does; by hand, because it needs a browser.

    pip install -e '.[app]' playwright     # and chromium, for example from Debian
    python -m tests.tools.video_index.browser_check URL --query "a red heart" --out pictures

Types the query, waits for the results, plays the first clip, asks a question, fills a blank, and
saves a screenshot of each step. Fails if a step does.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

SECONDS = 1000
"""Of playwright's time-outs, which are in milliseconds."""


def use(page: Page, url: str, query: str, out: Path) -> str:
    """All steps; returns the caption of the first clip."""
    page.goto(url, timeout=120 * SECONDS)
    page.get_by_label("What to look for").fill(query)
    page.get_by_label("What to look for").press("Enter")
    first = page.locator(".hit").first
    expect(first).to_be_visible(timeout=120 * SECONDS)
    video = first.locator("video")
    # decoded and moving, not only present
    page.wait_for_function("v => v.readyState >= 2", arg=video.element_handle())
    video.evaluate("v => v.play()")
    page.wait_for_function("v => v.currentTime > 0.3", arg=video.element_handle())
    page.screenshot(path=out / "search.png", full_page=True)

    page.get_by_label("Question").fill("what is it")
    page.get_by_role("button", name="Answer").click()
    answer = page.get_by_label("Answer", exact=True)
    expect(answer).to_have_value(re.compile("rank"), timeout=120 * SECONDS)
    page.screenshot(path=out / "ask.png", full_page=True)

    page.get_by_role("tab", name="Fill blanks").click()
    page.get_by_label("Sentence with [MASK]").fill("a [MASK]")
    page.get_by_role("button", name="Fill", exact=True).click()
    picture = page.locator("img[src*='/file=']").last
    expect(picture).to_be_visible(timeout=180 * SECONDS)
    page.screenshot(path=out / "fill.png", full_page=True)
    return first.locator("b").inner_text()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--query", required=True)
    parser.add_argument("--first", help="words that the first result must contain")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60 * SECONDS)
        first = use(page, options.url, options.query, options.out)
        print(f"first result: {first}")
        if options.first and options.first not in first:
            raise SystemExit(f"expected {options.first!r}")
        browser.close()


if __name__ == "__main__":
    main()
