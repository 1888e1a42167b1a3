"""The page: nothing from elsewhere, nothing as HTML, and what it is told of the run."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HANDLERS = re.compile(r"""\s(on\w+|style|href|src|action)\s*=\s*["']""")


def test_only_its_own_script_and_style_run(served: Any) -> None:
    """The policy names their hashes, and allows nothing else to run, load or be asked."""
    response = served.client.get("/")
    rules = dict(
        rule.strip().split(" ", 1)
        for rule in response.headers["content-security-policy"].split(";")
    )
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    for tag in ("script", "style"):
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_nothing_comes_from_elsewhere(served: Any) -> None:
    """No address but its own server's; no handlers, styles or texts as HTML."""
    html = served.client.get("/").text
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which is not fetched
    assert ["href"] == [match[1] for match in HANDLERS.finditer(html)]  # an empty icon
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in html
    for label in re.findall(r"<label[^>]*for=\"(\w+)\"", html):
        assert f'id="{label}"' in html
    assert {*re.findall(r'\$\("([\w-]+)"\)', html)} <= {*re.findall(r'id="([\w-]+)"', html)}


def test_what_the_page_is_told(serve: Any, save: Callable[..., None], tmp_path: Path) -> None:
    """The model, and a run's curves, thinned out, as far as they were written."""
    run = tmp_path / "run"
    save(run, 1)
    served = serve(run)
    status = served.client.get("/status").json()
    assert (status["model"], status["serves"]) == ("run@1", "run@latest")
    assert (status["window"], status["unit"], status["texts"]) == (128, "characters", 0)
    assert "train" not in status
    rows = [{"event": "stepdone", "step": n, "smoothed_loss": 4 - n / 1e3} for n in range(1000)]
    rows += [{"event": "evaluated", "step": 500, "loss": 3.5}, {"event": "stepdone", "step": None}]
    lines = [json.dumps(row) for row in rows]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n{torn", encoding="utf-8")
    status = served.client.get("/status").json()
    assert status["val"] == [[500, 3.5]]
    assert 200 <= len(status["train"]) <= 301
    assert status["train"][0] == [0, 4.0]
    assert status["train"][-1] == [999, 4 - 0.999]
    assert status["training"]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"event": "stopped", "step": 1000}\n')
    assert not served.client.get("/status").json()["training"]
