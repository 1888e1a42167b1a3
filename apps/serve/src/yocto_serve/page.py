"""The page at `/`, and what it shows of the model and of the run that trains."""

import base64
import hashlib
import re
import time
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from yocto_train import Run

if TYPE_CHECKING:
    from yocto_cli.screen.curve import History

    from yocto_serve.models import Library

_MOST_POINTS = 300  # of a curve
_SECONDS_OF_SILENCE = 60  # after which a run that did not say so has stopped, too
_HTML = files("yocto_serve").joinpath("page.html").read_text(encoding="utf-8")


def page() -> Response:
    """The page: only its own script and style run, and only this server is asked."""
    policy = (
        f"default-src 'none'; script-src {_hash_of('script')}; style-src {_hash_of('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(_HTML, media_type="text/html", headers=headers)


def _hash_of(tag: str) -> str:
    """What the policy calls the content of the page's only element of this name."""
    [content] = re.findall(f"<{tag}>(.*?)</{tag}>", _HTML, re.DOTALL)
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def status(library: "Library") -> dict[str, Any]:
    """What is served, and how the run goes on."""
    model, checkpoint = library.served, library.served.opened.checkpoint
    return {
        "model": model.id,
        "serves": library.default,
        "models": list(library.names()),
        "val_loss": None if checkpoint is None else checkpoint.val_loss,
        "parameters": model.model.config.n_parameters,
        "window": model.window,
        "unit": "characters" if model.tokenizer.kind == "char" else "tokens",
        "weights": getattr(model.model, "kind", "float32"),
        "answers": not model.layout.stops,  # a model for chats, not one that continues a text
        "system": model.layout.default_system,
        **({} if library.run is None else _progress(library.run)),
    }


def _progress(run: Run) -> dict[str, Any]:
    """The run's curves, and whether it trains."""
    try:
        found = (run.path / "metrics.jsonl").stat()
    except OSError:
        return {}
    from yocto_cli.screen.curve import thinned  # noqa: PLC0415 - brings NumPy in

    history = _history(run.path, (found.st_size, found.st_mtime_ns))
    is_fresh = time.time() - found.st_mtime < _SECONDS_OF_SILENCE
    return {
        "train": thinned(history.losses, _MOST_POINTS),
        "val": thinned([*history.evaluations.items()], _MOST_POINTS),
        "training": is_fresh and not history.stopped,
    }


@lru_cache(maxsize=1)
def _history(path: Path, _version: object) -> "History":
    """The course of a run, as it is in one version of its file."""
    from yocto_cli.screen.curve import History  # noqa: PLC0415 - brings NumPy in

    return History.of(Run(path))
