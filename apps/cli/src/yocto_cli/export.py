"""yocto-export: a model as a GGUF file, which llama.cpp, ollama and LM Studio run."""

import contextlib
import errno
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from yocto_cli.arguments import REQUIRED, CommandArguments, flag, load
from yocto_cli.command import UsageError, WorkFailedError, run_command
from yocto_cli.model_arguments import CKPT_HELP, OpeningFlags
from yocto_cli.screen.terminal import say

if TYPE_CHECKING:
    from yocto_tokenizers import ChatTemplate, Tokenizer
    from yocto_train import OpenedModel

PROG = "yocto-export"
_DESCRIPTION = f"""\
Writes a model as a GGUF file, which llama.cpp and its relatives run, and beside my.gguf
my.Modelfile, for ollama.

Examples:
  {PROG} checkpoints/my my.gguf
  {PROG} checkpoints/my my.gguf --type q8_0"""
MODELFILE = ".Modelfile"  # in place of .gguf


@dataclass(frozen=True, kw_only=True)
class ExportArguments(CommandArguments):
    """The flags of yocto-export; the first two may be given without their names."""

    ckpt: str = flag(REQUIRED, f"the model: {CKPT_HELP}", word="MODEL")
    out_path: str = flag(REQUIRED, "the file to write", word="OUT.gguf")
    type: Literal["f32", "f16", "bf16", "q8_0"] = flag(
        "f16", "how weights are stored: 4, 2, 2 or about 1 bytes each"
    )
    force: bool = flag(False, "replace the file and the Modelfile beside it, if they exist")
    opening: OpeningFlags = field(default_factory=OpeningFlags)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of yocto-export; returns the exit code."""
    return run_command(_main, prog=PROG, argv=argv)


def _main(argv: list[str]) -> int:
    arguments = load(ExportArguments, argv, prog=PROG, description=_DESCRIPTION)
    path, modelfile = _targets(arguments.out_path, force=arguments.force)
    from yocto_data.prep.files import replace_file  # noqa: PLC0415 - brings NumPy in
    from yocto_tokenizers import gguf_fields, template_for  # noqa: PLC0415

    from yocto_cli.models import load_model  # noqa: PLC0415

    opened, tokenizer = load_model(arguments.ckpt, arguments.opening)
    from yocto_model import write_gguf  # noqa: PLC0415 - brings torch in

    for note in opened.notes:
        say(f"note: {note}")
    template = template_for(opened.template, tokenizer, pretrained=opened.checkpoint is None)
    fields = gguf_fields(tokenizer)
    if opened.template is not None:  # only what was said, never what is guessed
        fields["tokenizer.chat_template"] = opened.template
    ends = [i for i in opened.end_ids if i not in (tokenizer.eos_id, fields.get(_EOS))]
    if ends and ends[0] < tokenizer.vocab_size:
        fields[_EOT] = ends[0]
    bos = tokenizer.bos_id if fields["tokenizer.ggml.add_bos_token"] else None
    text = modelfile_text(path.name, opened, tokenizer, template, added=bos)
    with _writing(path):
        write_gguf(path, opened.model, kind=arguments.type, fields=fields, name=opened.name)
    with _writing(modelfile):
        replace_file(modelfile, text.encode())
    size = path.stat().st_size / 1e6
    say(f"{path}: {arguments.type}, {size:.1f} MB; {modelfile} says how ollama is to ask it")
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "my-model"  # as ollama asks
    ways = (("llama-cli", "-m", str(path)), ("ollama", "create", name, "-f", str(modelfile)))
    say(f"next: {', or: '.join(map(shlex.join, ways))}")
    return 0


_EOS, _EOT = "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"


def _targets(given: str, *, force: bool) -> tuple[Path, Path]:
    """The two files to write; what cannot be written is refused before a model is opened."""
    path = Path(given)
    if path.suffix != ".gguf":
        raise UsageError(f"the file to write must end in .gguf, as my.gguf does, not {given!r}")
    if not path.name.isprintable() or any(character in given for character in "\0\r\n"):
        raise UsageError(f"{given} holds a line break or a control character; give another name")
    modelfile = path.with_suffix(MODELFILE)
    with contextlib.suppress(OSError):
        if not path.parent.is_dir():
            raise UsageError(f"{path.parent} is not a directory; make it first")
        for each in (path, modelfile):
            if each.is_dir():
                raise UsageError(f"{each} is a directory; give another name")
            if os.path.lexists(each) and not force:
                raise UsageError(f"{each} already exists; give --force to replace it")
    return path, modelfile


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name the file in what the system says against writing it, in place of a temporary one."""
    try:
        yield
    except OSError as error:
        # NumPy says only how many of its values found room.
        why = error.strerror or "no room for the whole file"
        full = error.errno in (None, errno.ENOSPC, errno.EDQUOT)
        how = "; make room and run it again" if full else ""
        raise WorkFailedError(f"cannot write {path}: {why}{how}") from error


# --- the Modelfile -------------------------------------------------------------------------------


def modelfile_text(
    file: str, opened: "OpenedModel", tokenizer: "Tokenizer", template: "ChatTemplate",
    *, added: int | None = None,
) -> str:  # fmt: skip
    """A Modelfile of ollama: https://github.com/ollama/ollama/blob/main/docs/modelfile.md.

    Args:
        file: the name of the GGUF file beside it.
        opened: the model.
        tokenizer: its tokenizer.
        template: how it is asked.
        added: the id that llama.cpp puts in front of a text by itself, if it does.
    """
    from yocto_tokenizers import ChatTemplateError  # noqa: PLC0415 - brings NumPy in

    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    try:
        found = go_template(template, tokenizer, added=names.get(-1 if added is None else added))
        lines = [f"FROM ./{file}", f'TEMPLATE """{found}"""']
        ends = [*opened.end_ids, template.end_id(tokenizer)]
        stops = [*(names[i] for i in ends if i in names), *template.stops(tokenizer)]
    except ChatTemplateError:  # it is in the file, where ollama finds those that it knows
        lines, stops = [f"FROM ./{file}"], [names[i] for i in opened.end_ids if i in names]
    lines += [f"PARAMETER stop {json.dumps(s, ensure_ascii=False)}" for s in dict.fromkeys(stops)]
    lines += [f"PARAMETER num_ctx {opened.model.config.block_size}", "PARAMETER temperature 0.8"]
    return "\n".join(lines) + "\n"


def go_template(template: "ChatTemplate", tokenizer: "Tokenizer", *, added: str | None) -> str:
    """A chat template in the language of ollama's Modelfiles, Go's text/template.

    What the Jinja template writes in front of a message, given who spoke before, is found by
    rendering a short conversation, and written out for each case.

    Raises:
        ChatTemplateError: the template refuses such a conversation.
    """
    from yocto_tokenizers import ChatTemplateError  # noqa: PLC0415 - brings NumPy in

    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": role[0]} for role in roles]

    def in_front(first: int) -> list[str]:
        """The template's own text in front of each message from the first on, and at the end."""
        parts = template.segments(messages[first:], tokenizer, add_generation_prompt=True)
        texts = [""]
        for part in parts:
            said = "" if part.message is None else messages[first + part.message]["content"]
            texts[-1] += part.text.removesuffix(said)
            texts += [""] if said else []
        texts[0] = texts[0].removeprefix(added or "")
        return [f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" for text in texts]

    begin, answer, again, end = in_front(1)
    try:
        system, after_system, *_ = in_front(0)
    except ChatTemplateError:  # it knows no system text
        system = after_system = begin
    return (
        '{{- $last := "" }}{{- range .Messages }}'
        f'{{{{- if eq .Role "system" }}}}{system}'
        f'{{{{- else if eq .Role "assistant" }}}}{answer}'
        f'{{{{- else if eq $last "" }}}}{begin}'
        f'{{{{- else if eq $last "system" }}}}{after_system}'
        f"{{{{- else }}}}{again}{{{{- end }}}}"
        "{{ .Content }}{{- $last = .Role }}{{- end }}"
        f"{end}"
    )
