"""The first lines of a conversation: who is speaking, and what to expect of it."""

from yocto_chat.chat import Chat

#: Below this many weights a model has learned how people talk, not what is the case.
_SMALL_PARAMETERS = 100_000_000


def opening(chat: Chat) -> tuple[list[str], list[str]]:
    """Facts about the model, for one line, and remarks of a line each."""
    model = chat.model
    size = f"{model.n_parameters / 1e6:.2f}M parameters"
    window = f"window {chat.window}"
    if chat.window < model.block_size:
        window += f" of {model.block_size}"
    loss = [] if model.val_loss is None else [f"val {model.val_loss:.3f}"]
    kind = [] if model.weights == "float32" else [f"{model.weights} weights"]
    facts = [model.name, f"step {model.step}", size, *loss, window, *kind]
    return facts, [*_remarks(chat), "/help lists the commands, Ctrl-D leaves."]


def _remarks(chat: Chat) -> list[str]:
    model = chat.model
    small = "small " if model.n_parameters < _SMALL_PARAMETERS else ""
    made_up = ", and makes things up" if small else ""
    if chat.layout.has_turn_tokens:
        remarks = [f"A {small}chat model: it answers as its text taught it{made_up}."]
    else:
        remarks = [f"A {small}plain-text model: it continues a dialogue{made_up}."]
    if model.best_step is not None and model.best_step != model.step:
        best = f"--ckpt {model.run}/best.pt"
        remarks.append(f"Its loss was lowest at step {model.best_step}: {best}")
    if model.replaced is not None:
        remarks.append(model.replaced)
    return remarks
