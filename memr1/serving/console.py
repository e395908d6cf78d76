"""The console: a page at /console, and its files from `web/`. It works with the same routes as every other program."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.staticfiles import StaticFiles

router = APIRouter(prefix="/console", include_in_schema=False)

_FILES = StaticFiles(directory=Path(__file__).parent / "web")


@router.get("")
async def page(request: Request) -> Response:
    """The page."""
    return await file("index.html", request)


@router.get("/{name:path}")
async def file(name: str, request: Request) -> Response:
    """A part of the page. Browsers keep it, and ask each time whether it has changed."""
    response = await _FILES.get_response(name, request.scope)
    response.headers["Cache-Control"] = "no-cache"
    return response
