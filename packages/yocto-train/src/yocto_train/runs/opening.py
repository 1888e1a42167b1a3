"""What a person means by the name of a model, and opening it: runs, folders, files, the hub."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yocto_model  # which imports torch when a model is asked for
import yocto_tokenizers
from yocto_data.prep import files
from yocto_model import ModelError
from yocto_model.formats.families import from_document
from yocto_tokenizers import TokenizerError

from yocto_train.errors import CheckpointError, RunError, reason
from yocto_train.runs.checkpoint import (
    MANIFEST,
    STATE,
    TEMPLATE,
    TOKENIZER_CONFIG,
    Checkpoint,
    failing_as,
    is_directory,
    reading,
    step_of,
)
from yocto_train.runs.run import POINTERS, Run

if TYPE_CHECKING:
    import torch
    from yocto_model import GPT
    from yocto_tokenizers import Tokenizer

_TOKENIZER_FILES = ("vocab.json", "tokenizer.json", "tokenizer.model")
_PARTS = (".safetensors", ".json", ".model", ".jinja")  # of a model's folder
_HUB_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
# All that is ever fetched: weights and settings, no code and no pickle.
_HUB_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json",
    "model-*.safetensors", TOKENIZER_CONFIG, TEMPLATE, *_TOKENIZER_FILES,
)  # fmt: skip
_PATIENCE_S = 10.0  # until a hub answers
# Of special tokens in a GGUF file, whose type is this number there.
_CONTROL = 3
_ENDS = {
    "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<|eot_id|>", "<|eom_id|>",
    "<end_of_turn>", "</s>",
}  # fmt: skip
# What normalizers of tokenizers change.
_PROBE = 'Aa Éé e\u0301 \ufb01 \u2460\t  "x"\u00a0\u2581\u3000\r\n\n b'
_LARGEST_TEXT_BYTES = 8 << 20  # of a template, or of the settings of a tokenizer


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """Where a model is; nothing but the manifest of a run's step has been read.

    Attributes:
        path: the step directory, the folder or the file.
        name: of the run, or of the folder or file.
        checkpoint: of a run; None for a model that comes from elsewhere.
    """

    path: Path
    name: str
    checkpoint: Checkpoint | None = None

    @property
    def n_bytes(self) -> int:
        """How many bytes its weights take on the disk."""
        weights = self.path.glob("*.safetensors") if self.path.is_dir() else [self.path]
        with reading(self.path):
            return sum(each.stat().st_size for each in weights if each.name != STATE)


@dataclass(frozen=True, kw_only=True)
class OpenedModel(FoundModel):
    """A model that has been read, and what came with it.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own or the named one; None if there is neither.
        end_ids: ids that end a text, in addition to the tokenizer's `eos_id`.
        template: Jinja source of how the model is asked, as far as its files say.
        notes: what a person should know about it.
    """

    model: GPT
    tokenizer: Tokenizer | None
    end_ids: tuple[int, ...] = ()
    template: str | None = None
    notes: tuple[str, ...] = ()


def find_model(source: str | Path | None = None, *, root: str | Path = "checkpoints") -> FoundModel:
    """Find the model that a person means, without waiting for torch.

    Arguments and errors are those of `open_model`.
    """
    if source is not None:
        with reading(source):
            if (found := _find_foreign(str(source))) is not None:
                return found
    return _found(find_checkpoint(source, root=root))


def _found(checkpoint: Checkpoint) -> FoundModel:
    return FoundModel(path=checkpoint.directory, name=checkpoint.run.name, checkpoint=checkpoint)


def open_model(
    source: str | Path | FoundModel | None = None,
    *,
    root: str | Path = "checkpoints",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    tokenizer: Tokenizer | None = None,
) -> OpenedModel:
    """Read the model that a person means, with its tokenizer.

    Args:
        source: a run, a step, or what else `find_checkpoint` takes; a Hugging Face folder, or a
            file in one; a `.gguf`; a `ckpt.pt` of nanoGPT; `hf:owner/name`, perhaps with
            `@revision`, which huggingface_hub fetches; or what `find_model` found. None for the
            newest run in `root`.
        root: where runs are.
        device: where the weights go.
        dtype: convert the weights; None keeps them as they were saved.
        tokenizer: for a model that has none; where it has one, they must be equal.

    Raises:
        CheckpointError: nothing exists there, it cannot be used, or its tokenizer does not fit.
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    found = source if isinstance(source, FoundModel) else find_model(source, root=root)
    checkpoint = found.checkpoint
    if checkpoint is None:
        with reading(found.path):
            return _checked(_open_foreign(found, **options), tokenizer)
    with contextlib.suppress(CheckpointError):
        return _checked(_open_checkpoint(checkpoint, **options), tokenizer)
    if not isinstance(source, FoundModel):  # a training may have pruned what was being read
        checkpoint = find_checkpoint(source, root=root)
    return _checked(_open_checkpoint(checkpoint, **options), tokenizer)


def _find_foreign(source: str) -> FoundModel | None:
    """A model that is no step of a run; None if the source means a run or a step."""
    if not source:
        raise CheckpointError("the name of the model is empty; name one, or leave the name out")
    if source.startswith("hf:"):
        return FoundModel(path=_fetched(source), name=source)
    path = Path(source)
    if path.suffix == ".pt" and path.is_file():
        return FoundModel(path=path, name=path.resolve().parent.name)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return FoundModel(path=path, name=path.stem)
    folder = _model_folder(path)
    return None if folder is None else FoundModel(path=folder, name=folder.resolve().name)


def _open_foreign(found: FoundModel, **options: Any) -> OpenedModel:
    if found.path.is_dir():
        return _open_folder(found, **options)
    if found.path.suffix == ".pt":
        model = yocto_model.read_nanogpt(found.path, **options)
        return OpenedModel(**vars(found), model=model, tokenizer=None)
    return _open_gguf(found, **options)


def _open_checkpoint(checkpoint: Checkpoint, **options: Any) -> OpenedModel:
    has_tokenizer = checkpoint.manifest.tokenizer is not None
    with reading(checkpoint.directory):
        return OpenedModel(
            **vars(_found(checkpoint)),
            tokenizer=checkpoint.load_tokenizer() if has_tokenizer else None,
            model=checkpoint.load_model(**options),
            end_ids=yocto_model.read_end_ids(checkpoint.directory),
            template=template_in(checkpoint.directory),
            notes=tuple(f"passed over: {problem}" for problem in checkpoint.skipped),
        )


def _open_folder(found: FoundModel, **options: Any) -> OpenedModel:
    folder = found.path
    for path in (folder / name for name in _HUB_FILES):
        if path.is_symlink() and not path.exists():
            raise CheckpointError(f"{path} is a link that leads nowhere; restore what it links to")
    index = folder / "model.safetensors.index.json"
    if any(folder.glob("model-*.safetensors")) and not (
        index.exists() or (folder / "model.safetensors").exists()
    ):
        raise CheckpointError(
            f"{folder} holds parts of weights, and no {index.name}, which says what is in them; "
            "copy that file, too"
        )
    has_tokenizer = any((folder / name).exists() for name in _TOKENIZER_FILES)
    return OpenedModel(
        **vars(found),
        tokenizer=yocto_tokenizers.load_tokenizer(folder) if has_tokenizer else None,
        model=yocto_model.GPT.load(folder, **options),
        end_ids=yocto_model.read_end_ids(folder),
        template=template_in(folder),
    )


def _open_gguf(found: FoundModel, **options: Any) -> OpenedModel:
    model, fields = yocto_model.read_gguf(found.path, **options)
    has_tokenizer = "tokenizer.ggml.model" in fields
    try:
        tokenizer = yocto_tokenizers.tokenizer_from_gguf(fields) if has_tokenizer else None
    except TokenizerError as error:
        raise CheckpointError(f"{found.path}: {error}") from error
    template = fields.get("tokenizer.chat_template")
    return OpenedModel(
        **vars(found),
        model=model,
        tokenizer=tokenizer,
        end_ids=() if tokenizer is None else _gguf_end_ids(fields),
        template=template if isinstance(template, str) else None,
    )


def _gguf_end_ids(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a text or a turn: llama.cpp, too, knows most of them by their names alone."""
    named = [fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    kinds = fields.get("tokenizer.ggml.token_type", [])
    tokens = zip(fields["tokenizer.ggml.tokens"], kinds, strict=False)
    ids = [i for i, (text, kind) in enumerate(tokens) if kind == _CONTROL and text in _ENDS]
    return tuple(sorted({i for i in [*named, *ids] if type(i) is int and i >= 0}))


def _checked(opened: OpenedModel, named: Tokenizer | None) -> OpenedModel:
    """The model with the tokenizer that is named for it, if that is not another than its own."""
    own = opened.tokenizer
    if named is not None and own is not None and named.fingerprint() != own.fingerprint():
        raise CheckpointError(
            f"the named {named.kind} tokenizer ({named.vocab_size} ids) does not belong to "
            f"{opened.path}, which has its own; leave it out"
        )
    tokenizer, rows = own or named, opened.model.config.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"{opened.path} has {rows} rows for ids, its tokenizer {tokenizer.vocab_size} ids; "
            "use the tokenizer that the model was trained with"
        )
    note = tokenizer_note(tokenizer)
    notes = opened.notes if note is None else (*opened.notes, note)
    return dataclasses.replace(opened, tokenizer=tokenizer, notes=notes)


def tokenizer_note(tokenizer: Tokenizer | None) -> str | None:
    """What a tokenizer that learned elsewhere does to texts, in numbers; None if it keeps all."""
    if tokenizer is None or tokenizer.kind not in ("huggingface", "sentencepiece"):
        return None
    found = yocto_tokenizers.round_trip(tokenizer, _PROBE)
    lost = f"in a line with capitals, accents, tabs and line ends {found.summary()}"
    return None if found.exact else f"its tokenizer does not keep all of a text: {lost}"


# --- folders -------------------------------------------------------------------------------------


def _model_folder(path: Path) -> Path | None:
    """The folder of a model that is not a step of a run, if the path means one.

    Raises:
        CheckpointError: the path is one file, and others that belong to it are missing.
    """
    is_file = path.suffix in _PARTS and path.is_file()
    folder = path.parent if is_file or path.name == "model.pt" else path
    if step_of(folder.resolve().name) is not None or (folder / MANIFEST).exists():
        return None
    has_config = (folder / "config.json").exists()
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    missing = [] if has_config else ["config.json"]
    missing += [] if has_weights and path.name != STATE else ["model.safetensors"]
    missing += [MANIFEST] if path.name == STATE else []
    if is_file and missing:
        raise CheckpointError(
            f"{path} is one file of a model, and {' and '.join(missing)} should lie beside it; "
            "name a whole folder, or copy all of its files"
        )
    return folder if has_config or has_weights else None


def _fetched(name: str) -> Path:
    """The folder of a model on the hub, downloaded unless it already is.

    Where and with whose rights is huggingface_hub's business: it reads HF_ENDPOINT and its cache.

    Raises:
        CheckpointError: there is no such model, it cannot be had, or has no safetensors.
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(f"{name} is not a name on the hub; write hf:owner/name@revision")
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - an extra, only for these names
    except ImportError as error:
        raise CheckpointError(
            f"{name} needs huggingface_hub; install yocto-train[hub], or name a folder"
        ) from error
    repo, revision = match.groups()
    try:
        folder = _snapshot(hub, repo, revision)
    except CheckpointError:
        raise
    except hub.errors.GatedRepoError as error:
        how = "accept its terms on its page, then log in with `hf auth login`"
        raise CheckpointError(f"{name} is not open to everyone; {how}") from error
    except hub.errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name} does not exist on the hub, or is private; check the spelling"
        ) from error
    except hub.errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: the hub has no such revision") from error
    except Exception as error:  # of HTTP, too, and of answers that no hub would give
        why = reason(error).partition("\n")[0][:200]
        if not isinstance(error, OSError | ValueError | RuntimeError):
            why = f"{type(error).__name__}: {why}"
        raise CheckpointError(
            f"cannot fetch {name}: {why}; check the network, or name a folder that you have"
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{name} holds no model.safetensors; download another form of it by hand and name that"
        )
    return folder


def _snapshot(hub: Any, repo: str, revision: str | None) -> Path:
    """The folder of a model, from the hub, or as it was fetched before if the hub fails."""
    get = functools.partial(
        hub.snapshot_download, repo, revision=revision, allow_patterns=list(_HUB_FILES)
    )
    try:
        # Asked first, because only this request takes a limit of time.
        hub.HfApi().model_info(repo, revision=revision or "main", timeout=_PATIENCE_S)
    except hub.errors.RevisionNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - raised again below
        try:
            return Path(get(local_files_only=True))
        except Exception:  # noqa: BLE001 - why the hub failed says more
            raise error from None
    settings = Path(get(etag_timeout=_PATIENCE_S, allow_patterns=["config.json"])) / "config.json"
    if (text := _text(settings)) is not None:  # before what may be many gigabytes
        with failing_as(CheckpointError, f"hf:{repo}: its config.json is damaged"):
            document = json.loads(text)
            if not isinstance(document, dict):
                raise CheckpointError(f"hf:{repo}: its config.json does not hold a JSON object")
            try:
                from_document(document)
            except ModelError as error:
                raise CheckpointError(f"hf:{repo}: its config.json: {error}") from error
    return Path(get(etag_timeout=_PATIENCE_S))


def template_in(folder: Path) -> str | None:
    """The chat template of a folder: a file of its own, or in the tokenizer's settings."""
    if (text := _text(folder / TEMPLATE)) is not None:
        return text
    path = folder / TOKENIZER_CONFIG
    if (text := _text(path)) is None:
        return None
    try:
        found = json.loads(text)["chat_template"]
        if not isinstance(found, str):  # several, by name
            found = {each["name"]: each["template"] for each in found}["default"]
    except (KeyError, TypeError):
        return None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON") from error
    return found if isinstance(found, str) else None


def _text(path: Path) -> str | None:
    """The text of a small file; None if there is no such file."""
    if not path.exists():
        return None
    with reading(path), files.open_regular(path) as file:
        content = file.read(_LARGEST_TEXT_BYTES + 1)
        if len(content) > _LARGEST_TEXT_BYTES:
            raise CheckpointError(f"{path} is far too large for a text of settings")
        if content.startswith(b"version https://git-lfs"):
            raise CheckpointError(
                f"{path} is a Git LFS pointer; fetch the real file with `git lfs pull`"
            )
        return content.decode()


# --- runs ----------------------------------------------------------------------------------------


def find_checkpoint(
    path: str | Path | None = None, *, root: str | Path = "checkpoints"
) -> Checkpoint:
    """The checkpoint that a user means, to write text with.

    Args:
        path: a run (its newest sound checkpoint), a step directory, `latest` or `best` in a run;
            `latest.pt`, `best.pt` and a step's `model.pt` mean the same. None for the newest run
            in `root`.
        root: where runs are.

    Raises:
        CheckpointError: nothing exists there, or it is not a sound checkpoint.
    """
    with contextlib.suppress(CheckpointError):
        return _find(path, root)
    return _find(path, root)  # a training that goes on may have pruned what was being read


def _find(path: str | Path | None, root: str | Path) -> Checkpoint:
    if path is not None:
        with reading(path):
            return _find_named(Path(path))
    try:
        return Run.newest(root).latest(to_resume=False)
    except RunError as error:
        raise CheckpointError(str(error)) from error


def _find_named(path: Path) -> Checkpoint:
    if path.name in ("model.pt", "model.safetensors"):
        path = path.parent
    for pointer in POINTERS:
        if path.name in (pointer, f"{pointer}.pt") and step_of(path.parent.name) is None:
            path = path.with_name(pointer)
            if is_directory(path):  # a copy of the step that the link named, or a run of that name
                break
            if directory := Run(path.parent).pointed(pointer):
                return Checkpoint.open(directory)
            raise CheckpointError(f"{path} does not point to a checkpoint; name the run instead")
    if not path.exists():
        if _HUB_NAME.fullmatch(f"hf:{path}") and not path.parent.exists():
            raise CheckpointError(
                f"{path} does not exist; name a run, or, for a model on the hub, hf:{path}"
            )
        raise CheckpointError(
            f"{path} does not exist; name a run, or train one: uv run yocto-train"
        )
    if step_of(path.resolve().name) is not None or (path / MANIFEST).exists():
        return Checkpoint.open(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a checkpoint: name a run, or a step of one")
    run = Run(path)
    if not run.steps():
        with contextlib.suppress(RunError):  # then it is not a directory of runs either
            newest = Run.newest(path).path
            raise CheckpointError(f"{path} holds runs; name one, such as the newest, {newest}")
    return run.latest(to_resume=False)
