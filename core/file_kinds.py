"""Recognizes files whose content is not what their names state, by their first bytes."""

_FETCH = "The download failed or needs a login; fetch the file again."
_OLD_GGML = ("a file of ggml before GGUF", "Convert the original checkpoint.")
_PAGE = ("a web page", _FETCH)
_KINDS = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "Fetch it: `git lfs pull`."),
    b"GGUF": ("a GGUF file", "Rename it so that it ends in .gguf, and name that file."),
    b"\x89HDF": ("a TensorFlow or Keras file", "Load it with `from_tf=True` in Transformers 4 and save it again."),
    **dict.fromkeys((b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml"), _OLD_GGML),
    **dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html", b"<?xml"), _PAGE),
}
HEAD_BYTES = 32  # that `other_kind` needs


def other_kind(head: bytes) -> tuple[str, str] | None:
    """The kind of a file that begins with these bytes, and the next step; None if it is unknown."""
    return next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)
