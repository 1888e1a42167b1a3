"""The page at `/`, and what it shows of the model and of the run that trains."""

import base64
import hashlib
import re
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from yocto_train import Run

from yocto_serve.models import Library

_MOST_POINTS = 300  # of a curve
_SECONDS_OF_SILENCE = 60  # after which a run that did not say so has stopped, too
Points = list[tuple[int, float]]


class Page:
    """The page, and the state that it asks for."""

    def __init__(self) -> None:
        html = files("yocto_serve").joinpath("page.html").read_text(encoding="utf-8")
        self._html = html.encode()
        # Only the page's own script and style run, and only this server is asked.
        rules = {
            "default-src": "'none'",
            "script-src": _hashes(html, "script"),
            "style-src": _hashes(html, "style"),
            "connect-src": "'self'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        self._headers = {
            "content-security-policy": "; ".join(f"{name} {rule}" for name, rule in rules.items()),
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }
        self._curve: tuple[object, dict[str, Any]] = (None, {})

    async def get(self, request: Request) -> Response:
        """GET /."""
        del request
        return Response(self._html, media_type="text/html", headers=self._headers)

    def status(self, library: Library) -> dict[str, Any]:
        """What is served, and how the run goes on."""
        model, checkpoint = library.served, library.served.opened.checkpoint
        return {
            "model": model.id,
            "serves": library.default,
            "models": list(library.names()),
            "step": None if checkpoint is None else checkpoint.step,
            "val_loss": None if checkpoint is None else checkpoint.val_loss,
            "parameters": model.model.config.n_parameters,
            "window": model.window,
            "unit": "characters" if model.tokenizer.kind == "char" else "tokens",
            "weights": getattr(model.model, "kind", "float32"),
            "answers": not model.stops,  # a model for chats, not one that continues a text
            "system": model.template.default_system(model.tokenizer),
            **({} if library.run is None else self._progress(library.run)),
        }

    def _progress(self, run: Run) -> dict[str, Any]:
        """The run's curves, read again when there is more."""
        try:
            found = (Path(run.path) / "metrics.jsonl").stat()
        except OSError:
            return {}
        version = found.st_size, found.st_mtime_ns
        if self._curve[0] != version:
            rows = run.rows("metrics.jsonl")
            last = rows[-1].get("event") if rows else "stopped"
            curves = {
                "train": _points(rows, "stepdone", "smoothed_loss"),
                "val": _points(rows, "evaluated", "loss"),
                "ended": last == "stopped",
            }
            self._curve = version, curves
        curves = self._curve[1]
        is_fresh = time.time() - found.st_mtime < _SECONDS_OF_SILENCE
        return {**curves, "training": is_fresh and not curves["ended"]}


def _points(rows: Sequence[dict[str, Any]], event: str, name: str) -> Points:
    """A curve, thinned out, with its last point."""
    points = [
        (row["step"], row[name])
        for row in rows
        if row.get("event") == event
        and isinstance(row.get("step"), int)
        and isinstance(row.get(name), float)
    ]
    stride = -(-len(points) // _MOST_POINTS) or 1
    return [*points[:-1:stride], *points[-1:]]


def _hashes(html: str, tag: str) -> str:
    contents = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
