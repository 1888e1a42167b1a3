"""The learner's path: the files that README and tour name, in order, stay an evening's reading."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATH = [
    "packages/yocto-tokenizers/src/yocto_tokenizers/char.py",
    "packages/yocto-data/src/yocto_data/dataset.py",
    "packages/yocto-data/src/yocto_data/batches.py",
    "packages/yocto-model/src/yocto_model/layers.py",
    "packages/yocto-model/src/yocto_model/gpt.py",
    "packages/yocto-train/src/yocto_train/step.py",
    "packages/yocto-train/src/yocto_train/schedules.py",
    "packages/yocto-model/src/yocto_model/sampling.py",
    "packages/yocto-model/src/yocto_model/generate.py",
]
LINES = 1_100


def sources_linked(page: Path) -> list[str]:
    """The Python files of packages that a page links to, in the order of their first mention."""
    links = re.findall(r"\]\(([^)#]+\.py)\)", page.read_text(encoding="utf-8"))
    paths = [str((page.parent / link).resolve().relative_to(ROOT)) for link in links]
    return list(dict.fromkeys(path for path in paths if path.startswith("packages/")))


def code_and_comments(source: str) -> tuple[int, int]:
    """Lines that hold code, docstrings not counted, and lines that are comments."""
    docstrings = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code: set[int] = set()
    comments = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type:")):
            comments += 1
        elif token.string.strip() and token.type != tokenize.COMMENT:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings), comments


@pytest.mark.parametrize("page", ["README.md", "docs/tour.md"])
def test_pages_name_the_path_in_order(page: str) -> None:
    """README and tour link exactly the files of the path, in the order in which they are read."""
    assert PATH == sources_linked(ROOT / page)


def test_the_path_is_an_evenings_reading() -> None:
    """About a thousand lines in all."""
    lines = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in PATH}
    assert sum(lines.values()) <= LINES, lines


def test_comments_say_why() -> None:
    """15 to 30 comments for 100 lines of code, as in the code that people learn from."""
    counts = {path: code_and_comments((ROOT / path).read_text(encoding="utf-8")) for path in PATH}
    code, comments = map(sum, zip(*counts.values(), strict=True))
    assert 0.15 <= comments / code <= 0.30, counts
    assert min(comments / code for code, comments in counts.values()) >= 0.14, counts


def test_one_screen_shows_a_training_step() -> None:
    """Batch, loss, backward, clipping and update stand in one function, in this order."""
    tree = ast.parse((ROOT / PATH[5]).read_text(encoding="utf-8"))
    (step,) = (
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "train_step"
    )
    body = [ast.unparse(statement) for statement in step.body[1:]]  # without its docstring
    parts = ["sampler.batch(", "cross_entropy(", "backward(", "clip(", "update("]
    places = ["\n".join(body).index(part) for part in parts]
    assert sorted(places) == places
    assert step.body[-1].lineno - step.body[1].lineno < 50
