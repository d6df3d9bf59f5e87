"""Recognizes files that hold something else than their names state, by their first bytes."""

_FETCH = "Fetch the file again; the download needs a login, or failed."
_OLD_GGML = ("a file of ggml before GGUF", "Convert the original checkpoint.")
_PAGE = ("a web page", _FETCH)
_KINDS = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "Fetch it: `git lfs pull`."),
    b"GGUF": ("a GGUF file", "Give it a name that ends in .gguf, and name the file."),
    b"\x89HDF": ("a TensorFlow or Keras file", "Load it with `from_tf=True` in Transformers 4 and save it again."),
    **dict.fromkeys((b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml"), _OLD_GGML),
    **dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html", b"<?xml"), _PAGE),
}
HEAD_BYTES = 32  # that `other_kind` needs


def other_kind(head: bytes) -> tuple[str, str] | None:
    """What a file is that begins with these bytes, and the next step; None if it is not known."""
    return next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)
