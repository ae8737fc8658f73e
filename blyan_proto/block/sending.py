"""How a tensor class is sent: the delta codecs' settings, and how people write them.

A setting is one u16 in a run's CodecChoice. Two codecs put two numbers into it:
SC `bits << 12 | kept`, ROWS `codec << 8 | setting` of the codec inside. The text forms
are DENSE, LR4:16, SC:64/1, Q:4, ROWS:LR4/16; in front of one may stand a tensor class
and "=", behind it "@" and the round from which it holds. docs/tile-layout.md 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from blyan_proto.block.model import Codec, CodecChoice, TensorClass

MAX_RANK = 255  # LR4: 7 * 255 * 7 * 255 = 3,186,225 < 2^24
MAX_KEPT = 1024  # SC: of each 4096; with more, Q has fewer bytes for the same error
SC_BITS = (1, 2)
Q_BITS = (1, 2, 4, 8)
_FORMS = {
    Codec.DENSE: "DENSE",
    Codec.LR4: f"LR4:RANK with a rank of 1 to {MAX_RANK}",
    Codec.SC: f"SC:KEPT/BITS with 1 to {MAX_KEPT} kept of 4096 and 1 or 2 bits a value",
    Codec.Q: "Q:BITS with 1, 2, 4 or 8 bits",
    Codec.ROWS: "ROWS:LR4/RANK, ROWS:LRC/RANK or ROWS:Q/BITS",
    Codec.LRC: f"LRC:RANK with the rank of 1 to {MAX_RANK} whose bytes LR4 takes",
}


def sparse(kept: int, bits: int) -> int:
    """Return the setting of SC: `kept` values of each 4096, `bits` bits each."""
    return bits << 12 | kept


def sparse_parts(setting: int) -> tuple[int, int]:
    """Return (kept, bits) of a setting of SC."""
    return setting & 0xFFF, setting >> 12


def rows(codec: Codec, setting: int) -> int:
    """Return the setting of ROWS with `codec` inside."""
    return codec << 8 | setting


def rows_parts(setting: int) -> tuple[Codec, int]:
    """Return (codec, setting) inside ROWS. ValueError for what is no codec."""
    return Codec(setting >> 8), setting & 0xFF


def check(codec: Codec, setting: int) -> None:
    """Raise ValueError unless `setting` is one of the codec's."""
    if codec not in _FORMS:
        raise ValueError(f"codec {codec.name} is not in this version")
    if not _is_setting(codec, setting):
        raise ValueError(
            f"{codec.name} has no setting {setting}; it is {_FORMS[codec]}"
        )


def _is_setting(codec: Codec, setting: int) -> bool:
    if codec in (Codec.LR4, Codec.LRC):
        return 1 <= setting <= MAX_RANK
    if codec is Codec.SC:
        kept, bits = sparse_parts(setting)
        return 1 <= kept <= MAX_KEPT and bits in SC_BITS
    if codec is Codec.Q:
        return setting in Q_BITS
    if codec is Codec.ROWS:
        inside = setting >> 8
        return inside in (Codec.LR4, Codec.LRC, Codec.Q) and _is_setting(
            *rows_parts(setting)
        )
    return setting == 0


def parse(text: str) -> tuple[Codec, int]:
    """Return (codec, setting) of a text form. ValueError with a sentence."""
    name, _, rest = text.partition(":")
    codec = _codec_of(name)
    numbers = rest.split("/") if rest else []
    if codec is Codec.DENSE and not numbers:
        return codec, 0
    if codec is Codec.ROWS and len(numbers) == 2:
        setting = rows(_codec_of(numbers[0]), _number(numbers[1], text))
    elif codec is Codec.SC and len(numbers) in (1, 2):
        bits = _number(numbers[1], text) if len(numbers) == 2 else 2
        setting = sparse(min(_number(numbers[0], text), 0xFFF), bits)
    elif codec in (Codec.LR4, Codec.LRC, Codec.Q) and len(numbers) == 1:
        setting = _number(numbers[0], text)
    else:
        raise ValueError(f"{text!r} is no codec setting; write {_FORMS[codec]}")
    check(codec, setting)
    return codec, setting


def text_of(codec: Codec, setting: int) -> str:
    """Return the text form that `parse` reads."""
    if codec is Codec.DENSE:
        return codec.name
    if codec is Codec.SC:
        return f"{codec.name}:{'/'.join(map(str, sparse_parts(setting)))}"
    if codec is Codec.ROWS:
        inside, part = rows_parts(setting)
        return f"{codec.name}:{inside.name}/{part}"
    return f"{codec.name}:{setting}"


def chosen(
    texts: Sequence[str], before: Sequence[CodecChoice]
) -> tuple[CodecChoice, ...]:
    """Return `before` changed by texts like LR4:8, matrix=SC:64/1@20, router=Q:8.

    Without a class a text is for matrices and embeddings. What a class had before the
    first round that is named for it stays. ValueError with a sentence.
    """
    made: dict[tuple[TensorClass, int], CodecChoice] = {}
    for text in texts:
        for choice in _choices_of(text):
            key = (choice.tensor_class, choice.from_round)
            if key in made:
                raise ValueError(f"{text!r} chooses once more for the same round")
            made[key] = choice
    first: dict[TensorClass, int] = {}
    for tensor_class, from_round in sorted(made):
        first.setdefault(tensor_class, from_round)
    kept = [c for c in before if c.from_round < first.get(c.tensor_class, 2**32)]
    return (*kept, *(made[key] for key in sorted(made)))


def _choices_of(text: str) -> list[CodecChoice]:
    head, given, rest = text.rpartition("=")
    form, dated, at = rest.partition("@")
    classes = [TensorClass.MATRIX, TensorClass.EMBEDDING]
    if given:
        classes = [c for c in TensorClass if c.name == head.upper()]
    if not classes:
        known = ", ".join(c.name.lower() for c in TensorClass)
        raise ValueError(f"no tensor class is called {head!r} (there are {known})")
    codec, setting = parse(form)
    round_ = _number(at, text) if dated else 0
    return [CodecChoice(c, round_, codec, setting) for c in classes]


def _codec_of(name: str) -> Codec:
    for codec in _FORMS:
        if codec.name == name.upper():
            return codec
    known = ", ".join(codec.name for codec in _FORMS)
    raise ValueError(f"no codec is called {name!r} (there are {known})")


def _number(text: str, whole: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 6:
        raise ValueError(f"{text!r} in {whole!r} is not a small whole number")
    return int(text)
