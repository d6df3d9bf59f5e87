"""Good GGUF files, and what can be wrong with them: the mutations of the fuzz test.

Each mutation changes a `Draft`, a file taken apart so far that counts, lengths and offsets can lie, or its bytes. It
draws all that it decides from the `random.Random` that it is given, so a case is the same wherever it is made again.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from random import Random

import numpy as np
from dgpt2_quant.core.gguf_file import ALIGNMENT, MAGIC, VERSION, ValueType, padded, read_header, tensor_bytes
from dgpt2_quant.core.hyperparameters import KEYS, Hyperparameters
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.convert import convert

from ..checkpoints import make_checkpoint

_LARGEST = 1 << 22  # weights of a tensor that data is made for

SIZES = [key for key in KEYS if not key.endswith("epsilon")]
NUMBERS = (0, 1, 2, 3, 5, 31, 64, 255, 256, 511, 513, 1024, 2**15, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
# what llama.cpp reads besides, of other models' files or of odd ones; beyond these come names with a zero in them
OTHER_KEYS = (
    *(f"gpt2.{name}" for name in ("expert_count", "attention.key_length", "rope.scaling.type", "attention.causal")),
    *("gpt2.attention.head_count_kv", "gpt2.vocab_size", "gpt2.pooling_type", "gpt2.leading_dense_block_count"),
    *("general.alignment", "general.name", "general.type", "general.file_type", "general.quantization_version"),
    *("general.tensor_extra.name", "general.tensor_extra.prec_a4", "general.sampling.top_k", "general.architecture"),
    *("split.count", "split.no", "split.tensors.count", "tokenizer.chat_template", "tokenizer.rwkv.world"),
    *(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "unknown", "padding", "mask", "fim_pad")),
    *(f"tokenizer.ggml.{name}" for name in ("pre", "model", "scores", "token_type", "token_type_count", "merges")),
    *(f"tokenizer.ggml.{name}" for name in ("add_bos_token", "add_space_prefix", "suppress_tokens", "tokens")),
    *("tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.remove_extra_whitespaces"),
)
TEXTS = ("", "gpt2", "gpt-2", "default", "llama", "llama-bpe", "no_vocab", "none", "x" * 300, "phi-3", "\0", "imatrix")
ODD_TOKENS = (
    *("", "\0", "a\0b", " ", "Ġ", "Ċ", "<0x41>", "[EMPTY_3]", "unused", "\U0001f600" * 60, "漢", "\x7f", "￿"),
    *("<|endoftext|>", "<|eot_id|>", "<|end|>", "<|return|>", "<|call|>", "</s>", "<PAD>", "<|im_end|>"),
)
LARGE = (np.finfo(np.float32).max, 1e30, -1e30, 65504.0, 1e-45, 1e19)


@dataclass
class Entry:
    """A tensor: `dimensions` in the order of the file, the number of its `type`, and its intended `offset`."""

    name: bytes
    dimensions: list[int]
    type: int
    data: bytes
    offset: int | None = None


@dataclass
class Draft:
    """A file in parts. `keys` are names and encoded values in the order of the file; counts may be set to lie."""

    keys: list[tuple[bytes, bytes]]
    tensors: list[Entry]
    magic: bytes = MAGIC
    version: int = VERSION
    tensor_count: int | None = None
    key_count: int | None = None
    later: list[Callable[[bytes, int], bytes]] = field(default_factory=list)

    def encode(self) -> bytes:
        """The bytes of the file. Functions in `later` get them, and where the data begin."""
        counts = (self.tensor_count, len(self.tensors)), (self.key_count, len(self.keys))
        parts = [self.magic, struct.pack("<IQQ", self.version, *(real if lie is None else lie for lie, real in counts))]
        for key, value in self.keys:
            parts += [string(key), value]
        at, body = 0, []
        for tensor in self.tensors:
            offset = at if tensor.offset is None else tensor.offset
            parts.append(string(tensor.name) + struct.pack("<I", len(tensor.dimensions)))
            parts.append(struct.pack(f"<{len(tensor.dimensions)}Q", *tensor.dimensions))
            parts.append(struct.pack("<IQ", tensor.type, offset))
            body.append(tensor.data.ljust(padded(len(tensor.data)), b"\0"))
            at += len(body[-1])
        head = b"".join(parts)
        head = head.ljust(padded(len(head)), b"\0")
        data = head + b"".join(body)
        for change in self.later:
            data = change(data, len(head))
        return data

    def index(self, key: str) -> int:
        """The index of a key; the end of the list if it is missing."""
        return next((index for index, (name, _) in enumerate(self.keys) if name == key.encode()), len(self.keys))

    def put(self, key: str, value: bytes) -> None:
        """Sets a key, or adds it."""
        index = self.index(key)
        self.keys[index : index + 1] = [(key.encode(), value)]

    def size(self, key: str) -> int:
        """A key's value, where it is a number of 32 bits; otherwise 0."""
        index = self.index(key)
        value = self.keys[index][1] if index < len(self.keys) else b""
        return int.from_bytes(value[4:], "little") if value[:4] == struct.pack("<I", ValueType.UINT32) else 0

    def strings(self, key: str) -> list[bytes]:
        """A list of strings; none where it is not one (any more)."""
        index = self.index(key)
        data = self.keys[index][1] if index < len(self.keys) else b""
        if data[:8] != struct.pack("<II", ValueType.ARRAY, ValueType.STRING):
            return []
        found, at = [], 16
        while at + 8 <= len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(data[at + 8 : at + 8 + length])
            at += 8 + length
        return found

    def put_strings(self, key: str, values: Sequence[bytes]) -> None:
        self.put(
            key, struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, len(values)) + b"".join(map(string, values))
        )

    def tensor(self, name: str) -> Entry | None:
        return next((tensor for tensor in self.tensors if tensor.name == name.encode()), None)


Mutation = Callable[[Draft, Random], None]


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def make_sources(folder: Path) -> list[Path]:
    """The files that the cases start from: small, of many types, tied and not."""
    narrow = make_checkpoint(folder / "narrow", layers=2, width=64, context=32)
    untied = make_checkpoint(folder / "untied", layers=1, width=64, context=16, head="untied", vocabulary=264)
    wide = make_checkpoint(folder / "wide", layers=1, width=256, inner=256, context=8)
    levels = (narrow, ["F32", "F16", "Q8_0", "Q4_0", "IQ4_NL"]), (untied, ["Q4_0", "Q5_1"]), (wide, ["Q4_K_M", "Q2_K"])
    return [
        Path(file.path)
        for checkpoint, types in levels
        for file in convert(str(checkpoint), type=types, output=folder, overwrite=True)
    ]


def take_apart(path: Path) -> Draft:
    header, data = read_header(path), path.read_bytes()
    return Draft(
        [(key.encode(), bytes(value)) for key, value in header.encoded.items()],
        [
            Entry(t.name.encode(), [*reversed(t.shape)], t.type, data[t.start : t.start + t.nbytes])
            for t in header.tensors.values()
        ],
    )


def mutated(source: Draft, random: Random) -> tuple[list[str], bytes]:
    """One to three mutations of a source: their names, and the file."""
    tensors = [replace(tensor, dimensions=[*tensor.dimensions]) for tensor in source.tensors]
    draft = replace(source, keys=[*source.keys], tensors=tensors, later=[])
    count = random.choices((1, 2, 3), (6, 2, 1))[0]
    chosen = random.choices(list(MUTATIONS), [weight for _, weight in MUTATIONS.values()], k=count)
    for name in chosen:
        MUTATIONS[name][0](draft, random)
    return chosen, draft.encode()


def random_value(random: Random) -> bytes:
    """A value of any type, encoded."""
    kind = random.choice(list(ValueType))
    if kind is ValueType.STRING:
        return struct.pack("<I", kind) + string(random.choice(TEXTS).encode())
    if kind is ValueType.ARRAY:
        inner = random.choice((ValueType.STRING, ValueType.INT32, ValueType.FLOAT32, ValueType.UINT8))
        count = random.choice((0, 1, 3, 262))
        items = b"".join(random_value_of(inner, random) for _ in range(count))
        return struct.pack("<IIQ", kind, inner, count) + items
    return struct.pack("<I", kind) + random_value_of(kind, random)


def random_value_of(kind: ValueType, random: Random) -> bytes:
    if kind is ValueType.STRING:
        return string(random.choice(TEXTS).encode())
    sizes = {ValueType.UINT8: 1, ValueType.INT8: 1, ValueType.BOOL: 1, ValueType.UINT16: 2, ValueType.INT16: 2}
    wide = (ValueType.UINT64, ValueType.INT64, ValueType.FLOAT64)
    return random.choice(NUMBERS).to_bytes(8, "little")[: sizes.get(kind, 8 if kind in wide else 4)]


def unsigned(value: int) -> bytes:
    return struct.pack("<II", ValueType.UINT32, value % 2**32)


def random_blocks(dimensions: Sequence[int], kind: TensorType, random: Random) -> bytes:
    """Any bits, with scales that are finite."""
    data = bytearray(random.randbytes(tensor_bytes(dimensions[::-1], kind)))
    for exponent in kind.exponents:
        for at, size, mask in exponent:
            words = np.ndarray((len(data) // kind.block_bytes,), f"<u{size}", data, at, (kind.block_bytes,))
            words &= words.dtype.type(2 ** (8 * size) - 1 - (1 << mask.bit_length() - 1))  # so at most about one
    return bytes(data)


def flip_bits(data: bytes, begin: int, end: int, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        if begin < end:
            changed[random.randrange(begin, end)] ^= 1 << random.randrange(8)
    return bytes(changed)


def flip_bits_in_the_head(draft: Draft, random: Random) -> None:
    draft.later.append(lambda data, start: flip_bits(data, 0, min(start, len(data)), random))


def flip_bits_in_the_data(draft: Draft, random: Random) -> None:
    draft.later.append(lambda data, start: flip_bits(data, start, len(data), random))


def truncate(draft: Draft, random: Random) -> None:
    def cut(data: bytes, start: int) -> bytes:
        return data[: random.choice((random.randrange(len(data) + 1), random.randrange(start + 1), len(data) - 1))]

    draft.later.append(cut)


def append_bytes(draft: Draft, random: Random) -> None:
    draft.later.append(lambda data, _: data + random.randbytes(random.choice((1, ALIGNMENT, 5000))))


def overwrite_a_length(draft: Draft, random: Random) -> None:
    """Any eight bytes of the head that look like a length become another one."""

    def change(data: bytes, start: int) -> bytes:
        places = [at for at in range(min(start, len(data)) - 8) if data[at + 2 : at + 8] == bytes(6) and data[at]]
        at = random.choice(places or [8])
        (was,) = struct.unpack_from("<Q", data, at)
        lie = random.choice((*NUMBERS, was + 1, was - 1, was * 2, 2**61, 2**64 - was)) % 2**64
        return data[:at] + struct.pack("<Q", lie) + data[at + 8 :]

    draft.later.append(change)


def lie_about_counts(draft: Draft, random: Random) -> None:
    for name in random.sample(("tensor_count", "key_count"), random.choice((1, 2))):
        near = len(draft.tensors if name == "tensor_count" else draft.keys) + random.choice((-1, 1))
        setattr(draft, name, random.choice((*NUMBERS, near)))


def change_magic(draft: Draft, random: Random) -> None:
    if random.random() < 0.5:
        draft.magic = random.choice((b"GGML", b"GGUf", b"\0\0\0\0", b"FUGG", b"PK\3\4"))
    else:
        draft.version = random.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1))


def change_a_size(draft: Draft, random: Random) -> None:
    key = random.choice(SIZES)
    was = draft.size(key)
    value = random.choice((*NUMBERS, was + 1, was - 1, was * 2, was // 2))
    draft.put(key, unsigned(value) if random.random() < 0.8 else random_value(random))


def change_epsilon(draft: Draft, random: Random) -> None:
    value = random.choice((0.0, 1e-45, 1e-38, 1e-12, 0.5, 1.0, -1e-5, float("nan"), float("inf"), 3e38))
    draft.put("gpt2.attention.layer_norm_epsilon", struct.pack("<If", ValueType.FLOAT32, value))


def drop_a_key(draft: Draft, random: Random) -> None:
    if draft.keys:
        draft.keys.pop(random.randrange(len(draft.keys)))


def retype_a_key(draft: Draft, random: Random) -> None:
    if draft.keys:
        at = random.randrange(len(draft.keys))
        draft.keys[at] = draft.keys[at][0], random_value(random)


def add_a_key(draft: Draft, random: Random) -> None:
    draft.put(random.choice(OTHER_KEYS), random_value(random))


def add_a_number(draft: Draft, random: Random) -> None:
    draft.put(random.choice(OTHER_KEYS), unsigned(random.choice(NUMBERS)))


def double_a_key(draft: Draft, random: Random) -> None:
    if draft.keys:
        key, value = random.choice(draft.keys)
        name = random.choice((key, key + b"\0", key + b"\0x", b"", key.upper(), key + b" "))
        draft.keys.insert(random.randrange(len(draft.keys)), (name, random.choice((value, random_value(random)))))


def shuffle_keys(draft: Draft, random: Random) -> None:
    random.shuffle(draft.keys)


def break_utf8(draft: Draft, random: Random) -> None:
    bad = random.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"))
    where = random.randrange(3)
    if where == 0 and draft.keys:
        at = random.randrange(len(draft.keys))
        draft.keys[at] = draft.keys[at][0] + bad, draft.keys[at][1]
    elif where == 1 and draft.tensors:
        random.choice(draft.tensors).name += bad
    else:
        tokens = draft.strings("tokenizer.ggml.tokens") or [b""]
        tokens[random.randrange(len(tokens))] += bad
        draft.put_strings("tokenizer.ggml.tokens", tokens)


def damage_tokens(draft: Draft, random: Random) -> None:
    tokens = draft.strings("tokenizer.ggml.tokens")
    if not tokens:
        return
    way = random.randrange(5)
    if way == 0:
        random.shuffle(tokens)
    elif way == 1:
        tokens = [f"t{number}".encode() for number in range(len(tokens))]  # no byte has a token
    elif way == 2:
        tokens = tokens[: random.randrange(len(tokens))]
    else:
        for _ in range(random.choice((1, 1, 5))):
            at = random.randrange(len(tokens))
            tokens[at] = random.choice((random.choice(ODD_TOKENS).encode(), random.choice(tokens), tokens[at] * 99))
    draft.put_strings("tokenizer.ggml.tokens", tokens)


def damage_merges(draft: Draft, random: Random) -> None:
    merges = draft.strings("tokenizer.ggml.merges")
    odd = (
        b"",
        b" ",
        b"  ",
        b"a",
        b"a b c",
        b" a",
        b"a ",
        b"\xf0\x9f\x98\x80 x",
        b"q\0 r",
        b"Z Z",
        b"\xc4\xa0 \xc4\xa0",
    )
    way = random.randrange(4)
    if way == 0:
        merges = []
    elif way == 1:
        merges *= 50
    else:
        for _ in range(random.choice((1, 4))):
            merges.insert(random.randrange(len(merges) + 1), random.choice(odd))
    draft.put_strings("tokenizer.ggml.merges", merges)


def damage_token_types(draft: Draft, random: Random) -> None:
    count = max(0, len(draft.strings("tokenizer.ggml.tokens")) + random.choice((0, 0, 0, 0, 0, 1, -1)))
    kinds = [random.choice((0, 1, 2, 3, 4, 5, 6, 7, -1, 2**31 - 1)) for _ in range(count)]
    if random.random() < 0.6:
        kinds = [random.choice((1, 1, 2, 3, 4, 5)) for _ in range(count)]
    draft.put(
        "tokenizer.ggml.token_type", struct.pack(f"<IIQ{count}i", ValueType.ARRAY, ValueType.INT32, count, *kinds)
    )


def add_scores(draft: Draft, random: Random) -> None:
    count = len(draft.strings("tokenizer.ggml.tokens"))
    scores = [random.choice((0.0, 1e38, float("nan"), float("-inf"))) for _ in range(count)]
    kind = random.choice((ValueType.FLOAT32, ValueType.FLOAT32, ValueType.INT32))
    draft.put("tokenizer.ggml.scores", struct.pack(f"<IIQ{count}f", ValueType.ARRAY, kind, count, *scores))


def change_an_id(draft: Draft, random: Random) -> None:
    name = random.choice(("bos", "eos", "eos", "eot", "unknown", "padding", "fim_pre"))
    draft.put(f"tokenizer.ggml.{name}_token_id", unsigned(random.choice((*NUMBERS, 260, 261, 262, 263))))


def change_a_type(draft: Draft, random: Random) -> None:
    """The number alone."""
    if draft.tensors:
        random.choice(draft.tensors).type = random.choice(
            (*TensorType, 4, 9, 15, 24, 28, 31, 36, 43, 99, 2**31, 2**32 - 1)
        )


def retype_tensors(draft: Draft, random: Random) -> None:
    """Sound blocks of another type, in one matrix or in several."""
    for tensor in draft.tensors:
        # an absurd shape of an earlier mutation stays what it is: nobody has the data for it
        if len(tensor.dimensions) == 2 and random.random() < 0.4 and prod(tensor.dimensions) < _LARGEST:
            fitting = [kind for kind in TensorType if tensor.dimensions[0] % kind.block == 0]
            tensor.type = random.choice(fitting)
            tensor.data = random_blocks(tensor.dimensions, TensorType(tensor.type), random)


def retype_a_vector(draft: Draft, random: Random) -> None:
    vectors = [t for t in draft.tensors if len(t.dimensions) == 1 and t.dimensions[0] < _LARGEST]
    if vectors:
        tensor = random.choice(vectors)
        tensor.type = random.choice((TensorType.F16, TensorType.BF16, TensorType.Q8_0))
        tensor.data = random_blocks(tensor.dimensions, TensorType(tensor.type), random)


def swap_tensors(draft: Draft, random: Random) -> None:
    """Their names, data, shapes, or their places in the file."""
    if len(draft.tensors) < 2:
        return
    one, other = random.sample(draft.tensors, 2)
    if random.random() < 0.5:  # of one shape, so that a sound file comes of it
        alike = [t for t in draft.tensors if (t.dimensions, t.type) == (one.dimensions, one.type) and t is not one]
        other = random.choice(alike or [other])
    way = random.randrange(4)
    if way == 0:
        one.name, other.name = other.name, one.name
    elif way == 1:
        one.data, other.data = other.data, one.data
    elif way == 2:
        one.dimensions, other.dimensions = other.dimensions, one.dimensions
    else:
        random.shuffle(draft.tensors)


def drop_a_tensor(draft: Draft, random: Random) -> None:
    if draft.tensors:
        draft.tensors.pop(random.randrange(len(draft.tensors)))


def add_a_tensor(draft: Draft, random: Random) -> None:
    if draft.tensors:
        names = (
            b"output.weight",
            b"rope_freqs.weight",
            b"output_norm.weight",
            b"blk.0.ffn_gate.weight",
            b"",
            b"x" * 63,
            b"blk.9.ffn_up.weight",
            b"blk.0.attn_q.weight",
            b"token_embd.weight\0",
            b"x" * 64,
            b"blk.0.ffn_up.scale",
        )
        like = random.choice((*draft.tensors, draft.tensor("token_embd.weight") or draft.tensors[0]))
        added = replace(like, name=random.choice(names), dimensions=[*like.dimensions])
        draft.tensors.insert(random.randrange(len(draft.tensors) + 1), added)


def absurd_shape(draft: Draft, random: Random) -> None:
    """Dimensions that say something else than the data, whose products may overflow."""
    if draft.tensors:
        tensor = random.choice(draft.tensors)
        huge = (0, 1, 2**16, 2**31, 2**32, 2**33 + 32, 2**62, 2**63, 2**64 - 32, 2**64 - 1)
        way = random.randrange(4)
        if way == 0:
            tensor.dimensions = [random.choice(huge) for _ in range(random.choice((0, 1, 2, 3, 4, 5, 9)))]
        elif way == 1:
            tensor.dimensions.reverse()
        elif way == 2:
            tensor.dimensions = [*tensor.dimensions, 1]
        else:  # the same product modulo 2^64
            tensor.dimensions = [(2**32 if len(tensor.dimensions) > 1 else 2**63) + d for d in tensor.dimensions]


def move_an_offset(draft: Draft, random: Random) -> None:
    if draft.tensors:
        at = random.randrange(len(draft.tensors))
        was = sum(padded(len(tensor.data)) for tensor in draft.tensors[:at])
        moves = (was + ALIGNMENT, was - ALIGNMENT, was + 1, 0, 2**63, 2**64 - ALIGNMENT, 2**64 - 1)
        draft.tensors[at].offset = random.choice(moves) % 2**64


def other_sizes(draft: Draft, random: Random) -> None:
    """Another model, consistent in itself, and odd: sizes that only the product of all of them makes too large."""
    width, layers = random.choice(((1, 1), (2, 1), (32, 1), (32, 3), (64, 40), (8, 512), (512, 1)))
    heads = random.choice([number for number in (1, 2, width, width // 2) if number and width % number == 0])
    inner = random.choice((1, 3, width, 4 * width, 65536 // width))
    context = random.choice((1, 2, 7, 300, 1024, 20_000, 1 << 20 if width < 3 else 64))
    if layers > 3:
        context, inner = min(context, 1024), width
    kind = random.choice((TensorType.F16, TensorType.F32))
    other_model(draft, kind, layers=layers, width=width, heads=heads, inner=inner, context=context)


def other_model(draft: Draft, kind: TensorType, **sizes: int) -> None:
    """Puts zeros of these sizes (the fields of `Hyperparameters`) in the place of the tensors; the tokens stay."""
    for key, name in KEYS.items():
        if name in sizes:
            draft.put(key, unsigned(sizes[name]))
    tokens = len(draft.strings("tokenizer.ggml.tokens"))
    shapes = Hyperparameters(**sizes, vocabulary=tokens, norm_epsilon=1e-5).shapes()
    draft.tensors = []
    for name, shape in shapes.items():
        stored = kind if len(shape) == 2 else TensorType.F32
        draft.tensors.append(Entry(name.encode(), [*reversed(shape)], stored, bytes(tensor_bytes(shape, stored))))


def not_finite(draft: Draft, random: Random) -> None:
    """The exponent of one value or scale is that of an infinity or a NaN."""
    places = [tensor for tensor in draft.tensors if tensor.data and tensor.type in list(TensorType)]
    if not places:
        return
    tensor = random.choice(places)
    kind = TensorType(tensor.type)
    data = bytearray(tensor.data)
    block = random.randrange(max(1, len(data) // kind.block_bytes)) * kind.block_bytes
    for at, size, mask in random.choice(kind.exponents or ((),)):
        begin = block + at
        word = int.from_bytes(data[begin : begin + size], "little") | mask
        data[begin : begin + size] = word.to_bytes(size, "little")
    tensor.data = bytes(data[: len(tensor.data)])


def large_values(draft: Draft, random: Random) -> None:
    """Finite, and so large (or small) that sums of products are not."""
    value = random.choice(LARGE)
    for tensor in random.sample(draft.tensors, min(len(draft.tensors), random.choice((1, 1, 3, 99)))):
        if tensor.type == TensorType.F32 and len(tensor.data) % 4 == 0:
            tensor.data = np.full(len(tensor.data) // 4, value, np.float32).tobytes()
        elif tensor.type in list(TensorType):
            data, kind = bytearray(tensor.data), TensorType(tensor.type)
            for exponent in kind.exponents:
                for at, size, mask in exponent:  # the largest exponent but that of infinity
                    words = np.ndarray((len(data) // kind.block_bytes,), f"<u{size}", data, at, (kind.block_bytes,))
                    words |= words.dtype.type(mask)
                    words ^= words.dtype.type(mask & -mask)
            tensor.data = bytes(data)


def constant_tensors(draft: Draft, random: Random) -> None:
    for tensor in random.sample(draft.tensors, min(len(draft.tensors), random.choice((1, 4, 99)))):
        tensor.data = bytes([random.choice((0, 0, 0x11, 0x3F, 0x80))]) * len(tensor.data)


# with how often each is drawn: what a header is refused for comes seldom, because the rest goes deeper
MUTATIONS: dict[str, tuple[Mutation, int]] = {
    mutation.__name__: (mutation, weight)
    for weight, mutations in (
        (2, (truncate, lie_about_counts, overwrite_a_length, change_magic, break_utf8, absurd_shape, move_an_offset)),
        (3, (double_a_key, change_a_type, drop_a_key, drop_a_tensor, add_a_tensor, retype_a_vector)),
        (4, (shuffle_keys, append_bytes, add_scores, change_epsilon, add_a_number, not_finite, other_sizes)),
        (6, (change_a_size, retype_a_key, add_a_key, change_an_id, damage_merges, damage_token_types, swap_tensors)),
        (8, (damage_tokens, retype_tensors, large_values, constant_tensors, flip_bits_in_the_head)),
        (12, (flip_bits_in_the_data,)),
    )
    for mutation in mutations
}
