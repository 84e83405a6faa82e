"""Writes small inputs for each fuzz target into `corpus/TARGET`, from which the fuzzer goes on.

Needs nothing but Python 3 and the fixtures of `pullback-model`. Run:  python fuzz/make_seeds.py
"""

import json
import struct
from pathlib import Path

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "crates/pullback-model/tests/fixtures"


def seed(target, name, data):
    directory = HERE / "corpus" / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)


def sized(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def array(kind, items):
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def gguf(entries, tensors=()):
    """Entries: key, type, bytes of the value. Tensors: name, dimensions, type, data."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    for key, kind, value in entries:
        out += sized(key) + struct.pack("<I", kind) + value
    offset, data = 0, b""
    for name, dimensions, kind, bytes_ in tensors:
        out += sized(name) + struct.pack("<I", len(dimensions)) + struct.pack(f"<{len(dimensions)}Q", *dimensions)
        out += struct.pack("<IQ", kind, offset)
        data += bytes_ + b"\0" * (-len(bytes_) % 32)
        offset = len(data)
    return out + b"\0" * (-len(out) % 32) + data


def byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(0x100 + i) for i, b in enumerate(others)}}


ALPHABET = [byte_alphabet()[byte] for byte in range(256)]
TOKENS = ["<|endoftext|>", *ALPHABET, "th", "the", "Ġthe", "12"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2")]

llama = [
    ("general.architecture", 8, sized("llama")),
    *[
        (f"llama.{key}", 4, struct.pack("<I", value))
        for key, value in [
            ("block_count", 1), ("context_length", 16), ("embedding_length", 8), ("feed_forward_length", 12),
            ("attention.head_count", 2), ("attention.head_count_kv", 1),
        ]
    ],
    ("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
]
block_bytes = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 30: (1, 2)}
tensors = [("token_embd.weight", [8, 4], 0, bytes(128))]
for kind, (block, size) in block_bytes.items():
    tensors.append((f"t{kind}", [64, 2], kind, bytes(range(256))[: 128 // block * size % 256 or 256].ljust(128 // block * size, b"\1")))
seed("gguf", "types", gguf([*llama, ("general.alignment", 4, struct.pack("<I", 32))], tensors))
kinds = [(0, b"\1"), (1, b"\1"), (2, b"\1\0"), (3, b"\1\0"), (4, b"\1\0\0\0"), (5, b"\1\0\0\0"), (6, bytes(4)), (7, b"\1")]
kinds += [(8, sized("text")), (10, bytes(8)), (11, bytes(8)), (12, bytes(8)), (9, array(9, [array(5, [bytes(4)] * 2)]))]
seed("gguf", "values", gguf([(f"key{kind}", kind, value) for kind, value in kinds]))


def strings(key, items):
    return (f"tokenizer.ggml.{key}", 9, array(8, [sized(item) for item in items]))


for pre in ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "olmo"]:
    entries = [
        ("tokenizer.ggml.model", 8, sized("gpt2")),
        ("tokenizer.ggml.pre", 8, sized(pre)),
        strings("tokens", TOKENS),
        strings("merges", [" ".join(pair) for pair in MERGES]),
        ("tokenizer.ggml.token_type", 9, array(5, [struct.pack("<i", 3)] + [struct.pack("<i", 1)] * (len(TOKENS) - 1))),
        ("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 0)),
    ]
    seed("tokenizer_gguf", pre, gguf(entries))

pieces = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "▁the", "t", "h", "e", "th", "he", "the", "  "]
types = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 260) + [4]
scores = [0.0] * 259 + [-float(i) for i in range(len(pieces) - 259)]
for prefix in [0, 1]:
    entries = [
        ("tokenizer.ggml.model", 8, sized("llama")),
        strings("tokens", pieces),
        ("tokenizer.ggml.scores", 9, array(6, [struct.pack("<f", score) for score in scores])),
        ("tokenizer.ggml.token_type", 9, array(5, [struct.pack("<i", kind) for kind in types])),
        ("tokenizer.ggml.add_space_prefix", 7, bytes([prefix])),
        ("tokenizer.ggml.bos_token_id", 4, struct.pack("<I", 1)),
        ("tokenizer.ggml.unknown_token_id", 4, struct.pack("<I", 0)),
    ]
    seed("tokenizer_gguf", f"sentencepiece{prefix}", gguf(entries))

sizes = struct.pack("<7i", 8, 12, 1, 2, 1, 5, 4)
floats = 5 * 8 + 8 + 64 + 32 + 32 + 64 + 8 + 3 * 96 + 8
seed("llama2c", "version0", sizes + bytes(4 * (floats + 4 * 4)))
seed("llama2c", "version1", (b"24ka" + struct.pack("<i", 1) + sizes + b"\1").ljust(256, b"\0") + bytes(4 * floats))
tokens = ["<unk>", "\n<s>\n", "\n</s>\n", *pieces[3:259], " ", " the", "t", "h", "e", "th", "the"]
seed("llama2c", "tokenizer", struct.pack("<i", 7) + b"".join(struct.pack("<fi", -i, len(t)) + t.encode() for i, t in enumerate(tokens)))

config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 4, "tie_word_embeddings": True,
    "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
}
layer = "model.layers.0."
shapes = {
    "model.embed_tokens.weight": [4, 8], "model.norm.weight": [8], layer + "input_layernorm.weight": [8],
    layer + "post_attention_layernorm.weight": [8], layer + "self_attn.q_proj.weight": [8, 8],
    layer + "self_attn.k_proj.weight": [4, 8], layer + "self_attn.v_proj.weight": [4, 8],
    layer + "self_attn.o_proj.weight": [8, 8], layer + "mlp.gate_proj.weight": [12, 8], layer + "mlp.up_proj.weight": [12, 8],
    layer + "mlp.down_proj.weight": [8, 12],
}
for dtype, size in [("F32", 4), ("BF16", 2)]:
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + size * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    model = struct.pack("<Q", len(text)) + text + bytes(at)
    seed("huggingface", dtype, json.dumps(config).encode() + b"\xff" + model)


def directory(tokenizer=b"", settings=b"", generation=b"", vocab=b"", merges=b"", text="the 12\u20ac <s>"):
    return b"\xff".join([tokenizer, settings, generation, vocab, merges, text.encode()])


vocab = {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4}
seed("tokenizer_directory", "vocab", directory(
    settings=b'{"eos_token":"<|endoftext|>","chat_template":"{{ bos_token }}"}', generation=b'{"eos_token_id":[0,1]}',
    vocab=json.dumps(vocab).encode(), merges="#version: 0.2\na b\n".encode()))
variants = json.loads((FIXTURES / "tokenizers/variants.json").read_text())
for name, entry in variants.items():
    if entry["kind"] == "json":
        document = entry["tokenizer"]
        small = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "▁", "Ġ", "t", "h", "e", "th", "the"]
        document["model"]["vocab"] = {token: index for index, token in enumerate(small)}
        document["model"]["merges"] = [["t", "h"], ["th", "e"]]
        for token in document["added_tokens"]:
            token["id"] = small.index(token["content"])
        seed("tokenizer_directory", name, directory(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()))
word_piece = {
    "version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
              "vocab": {"[UNK]": 0, "the": 1, "##re": 2}},
}
seed("tokenizer_directory", "wordpiece", directory(json.dumps(word_piece).encode()))
unigram = {
    "version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁the", -1.0], ["t", -2.0]], "byte_fallback": False},
}
seed("tokenizer_directory", "unigram", directory(json.dumps(unigram, ensure_ascii=False).encode()))
