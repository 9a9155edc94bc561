"""The ASGI app: questions in JSON, answers in JSON, and what an operator looks at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from trainer.base.mistake import Mistake
from trainer.base.typed import nearest
from trainer.observe.metrics import TEXT_FORMAT
from trainer.serve.answering import SHOWN_DIGITS, FailedError, Question, answer_batch
from trainer.serve.batches import Batches, BusyError
from trainer.serve.bounds import Bounded
from trainer.serve.schemas import Answer, Problem, Recommend, Similar
from trainer.serve.serve_arguments import ServeArguments
from trainer.serve.server_metrics import ServerMetrics
from trainer.serve.shelf import Shelf

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": what}
    for status, what in (
        (400, "What is asked for is not there, or cannot be asked."),
        (413, "The request is too large."),
        (422, "The request is not of the form."),
        (503, "Too many wait, or the answer takes too long: ask again."),
    )
}


def build_app(arguments: ServeArguments, shelf: Shelf, metrics: ServerMetrics) -> Bounded:
    """The app, whose life begins and ends the thread that answers."""
    batches: Batches[Question, Answer] = Batches(
        partial(_timed_batch, shelf, metrics), arguments.batch, arguments.waiting
    )
    metrics.num_waiting = lambda: batches.num_waiting

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(batches.run()),
            asyncio.create_task(watch(shelf, arguments.look_seconds)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            batches.close()

    app = FastAPI(title="Tandem", version=FORM, lifespan=life, description=DESCRIPTION)
    app.middleware("http")(partial(_measured, metrics))
    app.exception_handler(RequestValidationError)(_not_of_the_form)
    app.exception_handler(HTTPException)(_http_problem)
    _add_questions(app, batches, arguments.answer_seconds)
    _add_looks(app, shelf, metrics, batches)
    return Bounded(app, arguments.body_bytes, arguments.client_seconds)


FORM = "1"
"""Of requests and answers."""
DESCRIPTION = (
    "Recommendations of a two-tower model, exact over the whole catalog, under filters. "
    "Ids, attributes and values are those of the source."
)


async def watch(shelf: Shelf, seconds: float) -> None:
    """Look for another bundle until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(shelf.look)


def _timed_batch(shelf: Shelf, metrics: ServerMetrics, questions: Any) -> list[Answer | Exception]:
    started = time.perf_counter()
    replies = answer_batch(shelf, questions)
    metrics.observe("tandem_serve_batch_seconds", time.perf_counter() - started)
    metrics.add("tandem_serve_batched_total", len(questions))
    return replies


def _add_questions(app: FastAPI, batches: Batches[Question, Answer], seconds: float) -> None:
    async def ask(body: Recommend | Similar) -> Any:
        try:
            return await asyncio.wait_for(batches.ask(body.ask()), seconds)
        except Mistake as mistake:
            return _problem(400, str(mistake))
        except BusyError:
            return _problem(503, "too many requests wait: ask again", {"retry-after": "1"})
        except TimeoutError:
            return _problem(503, f"no answer within {seconds:g} s", {"retry-after": "1"})
        except FailedError:
            return _problem(500, "the server failed; its log says how")

    @app.post("/recommend", response_model=Answer, responses=ERRORS)
    async def recommend(body: Recommend) -> Any:
        """Items for a user of the dataset (`user`), or for somebody new (`items`, `features`)."""
        return await ask(body)

    @app.post("/similar", response_model=Answer, responses=ERRORS)
    async def similar(body: Similar) -> Any:
        """Items whose vectors point where an item's does."""
        return await ask(body)


def _add_looks(
    app: FastAPI, shelf: Shelf, metrics: ServerMetrics, batches: Batches[Question, Answer]
) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """That it answers, and from what."""
        said = shelf.current.manifest
        return {
            "status": "ok",
            "bundle": said.digest[:SHOWN_DIGITS],
            "step": said.step,
            "items": said.items,
            "users": said.users,
            "waiting": batches.num_waiting,
        }

    @app.get("/metrics", include_in_schema=False)
    async def shown() -> Response:
        return Response(metrics.render(), media_type=TEXT_FORMAT)


async def _measured(
    metrics: ServerMetrics, request: Request, go_on: Callable[[Request], Awaitable[Response]]
) -> Response:
    started = time.perf_counter()
    response = await go_on(request)
    if request.url.path in ("/recommend", "/similar"):
        metrics.add("tandem_serve_requests_total", label=str(response.status_code))
        metrics.observe("tandem_serve_request_seconds", time.perf_counter() - started)
    return response


async def _not_of_the_form(request: Request, error: Exception) -> Response:
    """What pydantic says, in one line."""
    assert isinstance(error, RequestValidationError)
    if "json" not in request.headers.get("content-type", ""):
        return _problem(422, "the body is not said to be JSON: send content-type: application/json")
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "extra_forbidden":
        form = Similar if request.url.path == "/similar" else Recommend
        fields = form.model_fields
        told = f"{nearest(where, fields)}there are {', '.join(fields)}"
        return _problem(422, f"{where}: no field of this request: {told}")
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    said = first["msg"].removeprefix("Value error, ")
    return _problem(422, f"{where or 'the body'}: {said}{more}")


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"{request.method} {request.url.path}: {error.detail}"
    return _problem(error.status_code, f"{told}. POST /recommend and /similar: see GET /docs")


def _problem(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": " ".join(error.split())[:1000]}, status, headers)
