"""The concept explorer as a Gradio app, the same on this machine and in a Space; needs the extra `explore`."""

import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from ..corpus.searching import Hit
from . import pages
from .explorer import MAX_STEPS, MAX_TEMPERATURE, Explorer, Reading, check_number

CSS = pages.TEMPLATES / "explorer.css"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
THEME = gr.themes.Base(primary_hue="sky", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "monospace"])
ROW_CLICK = """
element.addEventListener("click", (event) => {
  const row = event.target.closest("tbody tr");
  if (row) trigger("click", {concept: Number(row.cells[0].textContent)});
});
"""
HOSTS = ("localhost", "127.0.0.1")
# All that the pages and gradio's clients ask for; what is left out takes files, hands them out, or fetches for others.
ROUTES = re.compile(
    r"/|/(assets|static|svelte)/.+|/(config|theme\.css|robots\.txt|favicon\.ico|manifest\.json)/?"
    r"|/gradio_api/(app_id|config|info|login_check|reset|startup-events|theme\.css|token|user|cancel)/?"
    r"|/gradio_api/(call|run|api|heartbeat|queue)/.+"
)
MAX_BODY = 1_000_000  # bytes of a request
STEPS = 16  # decoder calls that the slider begins with, as `generate` does
COLUMNS = ["concept", "reads most", "spread in bits", "share read"]


def build_app(explorer: Explorer, find: Callable[[str], list[Hit]] | None = None) -> gr.Blocks:
    """The app of one checkpoint; `launch_app` serves it. `find` answers questions from a corpus, if there is one."""
    with gr.Blocks(title=f"Concept explorer: {explorer.name}", analytics_enabled=False) as app:
        gr.HTML(pages.head(explorer))
        with gr.Tabs():
            if find is not None:
                with gr.Tab("Search"):
                    _search_tab(explorer, find)
            with gr.Tab("Read"):
                _read_tab(explorer, app)
            with gr.Tab("Compare"):
                _compare_tab(explorer)
            with gr.Tab("Fill in"):
                _infill_tab(explorer)
            with gr.Tab("Rebuild"):
                _rebuild_tab(explorer)
    return app


def launch_app(app: gr.Blocks, **options: Any) -> Any:
    """Serve the app with its own looks; `options` are those of `gradio.Blocks.launch`.

    Other sites cannot reach it through a visitor's browser: requests have to be made to this machine by name. Where
    `server_name` or GRADIO_SERVER_NAME opens it to others, and in a Space, any name will do.
    """
    opened = "SPACE_ID" in os.environ or (options.get("server_name") or os.environ.get("GRADIO_SERVER_NAME"))
    hosts = ["*"] if opened not in (None, "", *HOSTS) else list(HOSTS)
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False), Middleware(Door)]
    own = {"theme": THEME, "css_paths": CSS, "footer_links": [], "app_kwargs": {"middleware": middleware}}
    return app.launch(**own, **options)


class Door:
    """Lets through the requests of `ROUTES`, up to `MAX_BODY`."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        refusal = None
        if scope["type"] == "http":
            size = dict(scope["headers"]).get(b"content-length", b"0" if scope["method"] != "POST" else b"")
            if not ROUTES.fullmatch(scope["path"].removeprefix(scope.get("root_path", ""))):
                refusal = PlainTextResponse("There is nothing here.", 404)
            elif not size.isdigit():
                refusal = PlainTextResponse("Say how long the request is.", 411)
            elif int(size) > MAX_BODY:
                refusal = PlainTextResponse(f"A request may have {MAX_BODY:,} bytes.", 413)
        await (refusal or self.app)(scope, receive, send)


def _plainly(function: Callable) -> Callable:
    """A ValueError of it becomes a message."""

    @functools.wraps(function)
    def call(*args):
        try:
            return function(*args)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return call


def _run(
    triggers: Sequence[Any], function: Callable, inputs: Sequence[Any], outputs: Sequence[Any], name: str
) -> None:
    """`function` on each of the triggers; one model call at a time."""
    gr.on(triggers, _plainly(function), inputs, outputs, concurrency_limit=1, concurrency_id="model", api_name=name)


def _search_tab(explorer: Explorer, find: Callable[[str], list[Hit]]) -> None:
    question = gr.Textbox(explorer.examples[1], label="Question", lines=1, elem_id="search-question")
    search = _button("Search", "search")
    found = gr.HTML(elem_id="search-hits", js_on_load=ROW_CLICK)
    document = gr.HTML(elem_id="search-document")
    state = gr.State([])

    def on_search(question: str):
        explorer.check_text(question)
        hits = find(question)
        return (
            (question, hits),
            pages.found(hits),
            pages.document(hits[0]) + _matched(question, hits[0]) if hits else "",
        )

    def on_row(event: gr.EventData, state: Any) -> str:
        question, hits = state or ("", [])
        check_number("The place", event.concept, 1, len(hits), whole=True)
        hit = hits[event.concept - 1]
        return pages.document(hit) + _matched(question, hit)

    def _matched(question: str, hit: Hit) -> str:
        text = explorer.beginning(hit.text)
        return pages.matches(explorer.compare(explorer.beginning(question), text)) if text else ""

    _run([search.click, question.submit], on_search, [question], [state, found, document], "search")
    found.click(_plainly(on_row), state, document, api_visibility="private", show_progress="hidden")


def _read_tab(explorer: Explorer, app: gr.Blocks) -> None:
    text = gr.Textbox(explorer.examples[0], label="Text", lines=3, elem_id="read-text")
    read = _button("Read", "read")
    direction = gr.Radio(
        list(pages.DIRECTIONS), value=pages.DIRECTIONS[0], label="Direction", visible=explorer.model is not None
    )
    heat = gr.HTML(elem_id="read-map", js_on_load=ROW_CLICK)
    concept = gr.Slider(0, explorer.num_concepts - 1, 0, step=1, label="Concept", elem_id="read-concept")
    detail = gr.HTML(elem_id="read-detail")
    with gr.Accordion("All concepts as a table", open=False):
        table = gr.Dataframe(headers=COLUMNS, interactive=False, elem_id="read-table")
    state = gr.State()

    def on_read(text: str, direction: str, concept: int):
        reading = explorer.read(text)
        return reading, pages.reading_rows(reading), *show(reading, direction, concept)

    def show(reading: Reading | None, direction: str, concept: int):
        if reading is None:
            return "", ""
        check_number("The concept", concept, 0, explorer.num_concepts - 1, whole=True)
        return pages.reading_map(reading, direction, concept), pages.reading_of(reading, concept)

    def on_row(event: gr.EventData) -> int:
        return event.concept

    _run([read.click, app.load], on_read, [text, direction, concept], [state, table, heat, detail], "read")
    gr.on(
        [direction.change, concept.change],
        _plainly(show),
        [state, direction, concept],
        [heat, detail],
        api_visibility="private",
    )
    heat.click(on_row, None, concept, api_visibility="private", show_progress="hidden")


def _compare_tab(explorer: Explorer) -> None:
    with gr.Row():
        first = gr.Textbox(explorer.examples[1], label="First text", lines=2, min_width=320, elem_id="compare-first")
        second = gr.Textbox(
            explorer.examples[2], label="Second text", lines=2, min_width=320, elem_id="compare-second"
        )
    compare = _button("Compare", "compare")
    figures = gr.HTML(elem_id="compare-figures")
    table = gr.HTML(elem_id="compare-matches")

    def on_compare(first: str, second: str):
        result = explorer.compare(first, second)
        return pages.comparison(result), pages.matches(result)

    _run([compare.click], on_compare, [first, second], [figures, table], "compare")
    gr.Markdown("### Swap concepts and decode")
    if not _can(explorer, "swap"):
        return
    chosen = gr.CheckboxGroup(
        list(range(explorer.num_concepts)), label="Concepts that change places between the texts", elem_id="swap-which"
    )
    steps = _steps_slider()
    swap = _button("Swap and decode", "swap")
    result = gr.HTML(elem_id="swap-result")

    def on_swap(first: str, second: str, chosen: list[int], num_steps: int) -> str:
        return pages.swapped(*explorer.swap(first, second, chosen, num_steps))

    _run([swap.click], on_swap, [first, second, chosen, steps], [result], "swap")


def _infill_tab(explorer: Explorer) -> None:
    if not _can(explorer, "infill"):
        return
    mask = explorer.tokenizer.mask_token
    frame = explorer.tokenizer.convert_ids_to_tokens(explorer.frame)
    text = gr.Textbox(
        explorer.examples[3], label=f"Text, {mask} wherever a word is to be", lines=3, elem_id="infill-text"
    )
    with gr.Row():
        steps, temperature, seed = _steps_slider(), _temperature_slider(), _seed_box()
    infill = _button("Fill in", "infill")
    result = gr.HTML(elem_id="infill-result")

    def on_infill(text: str, num_steps: int, temperature: float, seed: int) -> str:
        return pages.infilling(explorer.infill(text, num_steps, temperature, seed), mask, frame)

    _run([infill.click], on_infill, [text, steps, temperature, seed], [result], "infill")


def _rebuild_tab(explorer: Explorer) -> None:
    if not _can(explorer, "rebuild"):
        return
    text = gr.Textbox(explorer.examples[0], label="Text", lines=3, elem_id="rebuild-text")
    count = gr.Slider(1, explorer.num_concepts, explorer.num_concepts, step=1, label="First concepts to keep")
    with gr.Row():
        steps, temperature, seed = _steps_slider(), _temperature_slider(), _seed_box()
    rebuild = _button("Rebuild", "rebuild")
    result = gr.HTML(elem_id="rebuild-result")

    def on_rebuild(text: str, count: int, num_steps: int, temperature: float, seed: int) -> str:
        return pages.rebuilding(explorer.rebuild(text, count, num_steps, temperature, seed), count)

    _run([rebuild.click, count.release], on_rebuild, [text, count, steps, temperature, seed], [result], "rebuild")


def _can(explorer: Explorer, activity: str) -> bool:
    """Whether the checkpoint can do it, after showing what there is to say about that."""
    notice = pages.notice(explorer, activity)
    if notice:
        gr.HTML(notice)
    return activity not in explorer.missing


def _button(label: str, name: str) -> gr.Button:
    return gr.Button(label, variant="primary", elem_id=name, elem_classes="ce-go")


def _steps_slider() -> gr.Slider:
    return gr.Slider(1, MAX_STEPS, STEPS, step=1, label="Decoder calls", min_width=240)


def _temperature_slider() -> gr.Slider:
    return gr.Slider(0, MAX_TEMPERATURE, 0, step=0.1, label="Temperature", min_width=240)


def _seed_box() -> gr.Number:
    return gr.Number(0, precision=0, minimum=0, label="Seed")
