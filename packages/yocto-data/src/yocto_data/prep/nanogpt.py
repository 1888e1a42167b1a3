"""Importing the train.bin and val.bin that nanoGPT's preparation scripts write."""

from pathlib import Path

from yocto_data.errors import DataError, ShortDataError, shorten
from yocto_data.prep.directory import check_target, resolve_target, staged_directory
from yocto_data.prep.encoding import Tokenizer, save_tokenizer, vocabulary_size
from yocto_data.prep.meta import DataMeta, SourceMeta, token_dtype
from yocto_data.prep.prepare import Progress, refuse_overlap
from yocto_data.prep.sources import PathLike
from yocto_data.prep.token_files import DtypeLike, TokenFile, TokenWriter


def import_nanogpt(
    source_dir: PathLike,
    out_dir: PathLike,
    *,
    dtype: DtypeLike,
    vocab_size: int,
    tokenizer: Tokenizer | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> DataMeta:
    """Copy `train.bin` and `val.bin` into a data directory with a `meta.json`.

    Files without a header do not say what they hold, so the caller does. A `meta.pkl` beside them
    is never opened: a pickle may run code. The errors are those of `prepare`.

    Args:
        source_dir: the directory that holds the two files.
        out_dir: the directory to make.
        dtype: element type of the files, `uint16` or `uint32`.
        vocab_size: the number of valid ids; every id is compared with it.
        tokenizer: the tokenizer of these ids, if known; its file and fingerprint are saved, too.
        force: replace a data directory that already exists.
        progress: called with bytes done, bytes in all, tokens so far.

    Returns:
        The content of the new meta.json; `text` and `options` are None in it.
    """
    element = token_dtype(vocab_size)
    if tokenizer is not None and (size := vocabulary_size(tokenizer)) != vocab_size:
        raise DataError(f"vocab_size {vocab_size} given, but the tokenizer's is {size}")
    source, target = Path(source_dir), resolve_target(out_dir)
    refuse_overlap(target, source)
    sources = [
        TokenFile(source / name, dtype=dtype, vocab_size=vocab_size)
        for name in ("train.bin", "val.bin")
    ]
    for file in sources:
        file.check_ids()
        if len(file.array) < 2:
            raise ShortDataError(f"{shorten(file.path)} holds one token; at least 2 are needed")
    check_target(target, force=force)
    report = progress or (lambda *_: None)
    total_bytes = sum(file.array.nbytes for file in sources)
    done_bytes = done_tokens = 0
    records = []
    with staged_directory(target, force=force) as directory:
        for file in sources:
            with TokenWriter(directory / file.path.name, element) as writer:
                for block in file.blocks():
                    writer.write(block.astype(element).tobytes())
                    done_bytes += block.nbytes
                    done_tokens += len(block)
                    report(done_bytes, total_bytes, done_tokens)
            records.append(writer.record())
        meta = DataMeta(
            vocab_size=int(vocab_size),
            tokenizer=save_tokenizer(tokenizer, directory),
            train=records[0],
            val=records[1],
            sources=tuple(
                SourceMeta(name=file.path.name, bytes=file.array.nbytes, sha256=file.sha256())
                for file in sources
            ),
        )
        meta.save(directory)
    return meta
