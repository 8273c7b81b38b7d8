"""The page of `allinone app`: search with playing clips, questions, masked words.

Gradio makes the page, FastAPI serves the clips. A clip is addressed by the number of its row: no
path ever comes from a browser, and only clips of the index are served.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware

from allinone.common.errors import AllInOneError
from allinone.common.formatting import one_line
from allinone.tools.inspection.cloze_figure import cloze_figure, predict_masks
from allinone.tools.inspection.predictor import RANK, as_text
from allinone.tools.video_index.search import Hit, Searcher
from allinone.tools.video_index.store import VideoIndex

COOKIE = "allinone_token"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
STYLE = """
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 12px }
.hit { border: 1px solid #8885; border-radius: 8px; padding: 8px; font-size: 14px }
.hit video, .hit img { width: 100%; aspect-ratio: 16 / 9; object-fit: contain; background: #000 }
.hit b { overflow-wrap: anywhere }
"""


class Page:
    """What the page does, for one index or for several side by side.

    Args:
        searchers: One for each index.
    """

    def __init__(self, searchers: Sequence[Searcher]) -> None:
        self.searchers = searchers

    def search(
        self, text: str, like: str | None, top: float, rerank: bool
    ) -> tuple[str, list[tuple[str, str]]]:
        """Search all indexes.

        Returns:
            (HTML of the results, (label, value) of each result for a choice).

        Raises:
            gradio.Error: The query cannot be used.
        """
        if not text.strip() and not like:
            raise gr.Error("Enter a text, or give an image or a video.")
        query: str | Path = Path(like) if like else text
        count, columns, choices = int(top), [], []
        for number, searcher in enumerate(self.searchers):
            again = count if rerank and not like else 0
            hits = self._do(partial(searcher.search, query, top=count, rerank=again))
            columns.append(self._column(number, searcher, hits))
            choices += [(self._label(number, hit), f"{number}/{hit.row}") for hit in hits]
        return "".join(columns), choices

    def answer(self, chosen: str | None, question: str, options: str) -> str:
        """Answer a question about a chosen clip; the options have one line each."""
        searcher, row = self._chosen(chosen)
        if not question.strip():
            raise gr.Error("Enter a question.")
        choices = [line.strip() for line in options.splitlines() if line.strip()]
        result = self._do(lambda: searcher.predictor.answer(Path(str(row)), question, choices, 5))
        return as_text(result)

    def fill(self, chosen: str | None, text: str) -> Image.Image:
        """Picture of the words predicted at each [MASK], and of the patches that support them."""
        searcher, row = self._chosen(chosen)
        predictor = searcher.predictor
        cloze = self._do(
            lambda: predict_masks(
                searcher.loaded, predictor.read_text, searcher.read_row(Path(str(row))), text
            )
        )
        return cloze_figure([cloze], str(searcher.loaded.weights)).image()

    def file(self, number: int, row: int) -> Path:
        """File of a clip; HTTPException unless the index has it and it is still there."""
        if not 0 <= number < len(self.searchers):
            raise HTTPException(404)
        index = self.searchers[number].index
        if not has_clip(index, row):
            raise HTTPException(404)
        try:
            path = index.file(index.row(row).path, content=True)
        except AllInOneError as error:
            raise HTTPException(404) from error
        if not path.is_file():
            raise HTTPException(404)
        return path

    def _chosen(self, chosen: str | None) -> tuple[Searcher, int]:
        number, _, row = (chosen or "").partition("/")
        if not (number.isdecimal() and row.isdecimal()) or int(number) >= len(self.searchers):
            raise gr.Error("Search first, then choose a clip.")
        searcher = self.searchers[int(number)]
        if not has_clip(searcher.index, int(row)):
            raise gr.Error("This clip is not in the index.")
        return searcher, int(row)

    def _do(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except AllInOneError as error:
            raise gr.Error(escape(str(error))) from error

    def _label(self, number: int, hit: Hit) -> str:
        which = f"{chr(ord('A') + number)} " if len(self.searchers) > 1 else ""
        return f"{which}{hit.rank}. {one_line(hit.clip.path)} at {hit.clip.start_s:.0f} s"

    def _column(self, number: int, searcher: Searcher, hits: Sequence[Hit]) -> str:
        title = ""
        if len(self.searchers) > 1:
            name = escape(searcher.index.manifest.checkpoint)
            title = f"<h3>{chr(ord('A') + number)}: {name}</h3>"
        return f"{title}<div class='hits'>{''.join(_card(number, hit) for hit in hits)}</div>"


def has_clip(index: VideoIndex, row: int) -> bool:
    """Whether a row number is that of a clip that can be found."""
    place = int(index.clips.searchsorted(row))
    return place < len(index) and int(index.clips[place]) == row


def _card(number: int, hit: Hit) -> str:
    clip = hit.clip
    source = f"clip/{number}/{hit.row}"
    if clip.end_s is not None:
        source += (
            f"#t={clip.start_s:.1f},{clip.end_s:.1f}"  # media fragment: browsers play this part
        )
    is_image = clip.path.lower().endswith((".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif"))
    shown = (
        f"<img src='{source}' alt=''>"
        if is_image
        else f"<video src='{source}' controls muted loop preload='metadata'></video>"
    )
    span = "" if clip.end_s is None else f"{clip.start_s:.0f}–{clip.end_s:.0f} s · "
    match = ""
    if hit.match is not None:
        what = "rank head" if hit.match_by == RANK else "match"
        match = f" · {what} {hit.match_text}"
    note = f"<br><i>{escape(hit.note)}</i>" if hit.note else ""
    return (
        f"<div class='hit'>{shown}<b>{hit.rank}. {escape(one_line(clip.path))}</b><br>"
        f"{span}similarity {hit.score:.3f}{match}{note}</div>"
    )


def build_app(searchers: Sequence[Searcher], token: str | None) -> FastAPI:
    """Build the web application.

    Args:
        searchers: One for each index.
        token: Required of every visitor (`?token=…`, then a cookie); None: the page is for this
            machine only, and requests for other host names are refused.
    """
    page = Page(searchers)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/clip/{number}/{row}")
    def clip(number: int, row: int) -> FileResponse:
        return FileResponse(page.file(number, row))

    if token is None:
        # another site's page could otherwise reach this one under its own name (DNS rebinding)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    else:

        @app.middleware("http")
        async def check_token(
            request: Request, proceed: Callable[[Request], Awaitable[Response]]
        ) -> Response:
            given = request.query_params.get("token", "")
            known = request.cookies.get(COOKIE, "")
            if not any(hmac.compare_digest(x.encode(), token.encode()) for x in (given, known)):
                return PlainTextResponse("add ?token=… to the address", status_code=403)
            response = await proceed(request)
            if given:
                response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return response

    return gr.mount_gradio_app(app, _blocks(page), path="/", show_error=True)


def _blocks(page: Page) -> gr.Blocks:
    clips = sum(len(searcher.index) for searcher in page.searchers)
    with gr.Blocks(title="All-in-one", analytics_enabled=False) as blocks:
        gr.HTML(f"<style>{STYLE}</style>")
        gr.Markdown(f"## Search {clips:,} clips")
        with gr.Row():
            text = gr.Textbox(label="What to look for", scale=4, autofocus=True)
            like = gr.File(label="or one that looks like", type="filepath", height=140, scale=2)
        with gr.Row():
            top = gr.Slider(1, 48, 12, step=1, label="Results")
            rerank = gr.Checkbox(label="Rank them again with text and frames together (slower)")
            button = gr.Button("Search", variant="primary")
        results = gr.HTML()
        chosen = gr.Dropdown(label="Clip to ask about", choices=[], interactive=True)
        with gr.Tab("Ask"):
            question = gr.Textbox(label="Question")
            options = gr.Textbox(label="Possible answers, one per line (optional)", lines=2)
            ask = gr.Button("Answer")
            answer = gr.Textbox(label="Answer", lines=8, interactive=False)
        with gr.Tab("Fill blanks"):
            sentence = gr.Textbox(label="Sentence with [MASK]", value="a [MASK] in the [MASK]")
            fill = gr.Button("Fill")
            picture = gr.Image(label="Words, and the patches that support them", type="pil")

        def search(*given: Any) -> tuple[str, Any]:
            found, choices = page.search(*given)
            return found, gr.Dropdown(choices=choices, value=choices[0][1] if choices else None)

        inputs = [text, like, top, rerank]
        gr.on([button.click, text.submit], search, inputs, [results, chosen], api_name="search")
        gr.on([ask.click, question.submit], page.answer, [chosen, question, options], answer)
        gr.on([fill.click, sentence.submit], page.fill, [chosen, sentence], picture)
    return blocks
