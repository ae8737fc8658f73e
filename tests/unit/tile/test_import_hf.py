"""Foreign checkpoints in, the same tensors out; what is wrong is said in one sentence."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from blyan_proto.block.model import Dtype
from blyan_proto.errors import LimitExceeded, ProtocolError
from blyan_tile.checkpoint import INDEX, SINGLE, open_checkpoint
from blyan_tile.create import create, model_of
from blyan_tile.layout import laid_out
from blyan_tile.model import export_hf, import_hf
from blyan_tile.model.export_hf import ExportJob, TileFiles, export_model
from blyan_tile.model.import_hf import ImportJob, Journal, import_checkpoint
from tests.bench import made_checkpoint as made
from tests.long import long

SHAPE = made.TINY | {"num_hidden_layers": 1, "num_local_experts": 2}
GROUPS = 5


def folder_of(path: Path, dtype: str = "f32", **more: int) -> Path:
    made.make(path, SHAPE, dtype, **more)
    return path


def imported(folder: Path, work: Path, report=lambda progress: None):
    return import_checkpoint(ImportJob(str(folder), str(work)), report)


def exported(result, work: Path, target: Path, **changed):
    model = replace(model_of("tiny", "tiny"), architecture=result.architecture)
    groups = tuple(
        TileFiles(tuple(str(work / tile.weights.hex()) for tile in tiles))
        for tiles in result.groups
    )
    settings = dict(
        directory=str(target),
        model=model,
        groups=groups,
        companions=str(work / result.companions.hex()),
        dtype=None,
        shard_bytes=1 << 40,
    )
    return export_model(ExportJob(**(settings | changed)), lambda progress: None)


def tensors_in(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return (dtype and shape, bytes) of every tensor of a folder."""
    with open_checkpoint(str(folder)) as opened:
        opened.find_tensors()
        found = {}
        for name, one in opened.tensors.items():
            with open(folder / one.file, "rb") as file:
                file.seek(one.start)
                found[name] = (f"{one.dtype} {one.shape}", file.read(one.bytes))
        return found


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_what_came_in_goes_out_byte_for_byte(tmp_path, dtype):
    folder = folder_of(tmp_path / "in", dtype, shard_bytes=60_000)
    assert (folder / INDEX).exists()
    told = []
    result = imported(folder, tmp_path / "work", told.append)
    assert result.dtype is Dtype[dtype.upper()] and result.family == "mixtral"
    assert [(one.done, one.total) for one in told] == [
        (n + 1, GROUPS) for n in range(GROUPS)
    ]
    before = tensors_in(folder)
    assert result.bytes == sum(len(raw) for _, raw in before.values())
    for shard_bytes in (1 << 40, 50_000):
        target = tmp_path / f"out{shard_bytes}"
        wrote = exported(result, tmp_path / "work", target, shard_bytes=shard_bytes)
        assert tensors_in(target) == before and wrote.tensors == len(before)
        assert (target / INDEX).exists() == (shard_bytes == 50_000)
        for beside in folder.glob("*.json"):
            if beside.name != INDEX:
                assert (target / beside.name).read_bytes() == beside.read_bytes()
        assert wrote.files == len(list(target.iterdir()))
        sizes = [path.stat().st_size for path in target.glob("*.safetensors")]
        largest = max(len(raw) for _, raw in before.values())
        assert max(sizes) < max(shard_bytes, largest) + 20_000
    again = tmp_path / "again"
    second = imported(target, again)
    assert second.groups == result.groups and second.companions == result.companions


def test_an_export_in_another_dtype_rounds_to_the_nearest(tmp_path):
    folder = folder_of(tmp_path / "in")
    result = imported(folder, tmp_path / "work")
    halves = tmp_path / "halves"
    exported(result, tmp_path / "work", halves, dtype=Dtype.F16)
    name = "model.norm.weight"
    wide = np.frombuffer(tensors_in(folder)[name][1], np.float32)
    half = np.frombuffer(tensors_in(halves)[name][1], np.float16)
    assert (half == wide.astype(np.float16)).all()
    brains = tmp_path / "brains"
    exported(result, tmp_path / "work", brains, dtype=Dtype.BF16)
    torch = pytest.importorskip("torch")
    expected = torch.from_numpy(wide.copy()).to(torch.bfloat16).view(torch.int16)
    stored = np.frombuffer(tensors_in(brains)[name][1], np.int16)
    assert (stored == expected.numpy()).all()
    # and back, exactly
    second = imported(brains, tmp_path / "work2")
    wider = tmp_path / "wider"
    exported(second, tmp_path / "work2", wider, dtype=Dtype.F32)
    back = np.frombuffer(tensors_in(wider)[name][1], np.uint32)
    assert (back == stored.view(np.uint16).astype(np.uint32) << 16).all()


def test_a_number_that_does_not_fit_is_refused_and_nothing_is_left(
    tmp_path, monkeypatch
):
    folder = folder_of(tmp_path / "in")
    change(folder, "model.norm.weight", lambda array: array + np.float32(1e6))
    result = imported(folder, tmp_path / "work")
    with pytest.raises(LimitExceeded, match="model.norm.weight has numbers that F16"):
        exported(result, tmp_path / "work", tmp_path / "out", dtype=Dtype.F16)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    monkeypatch.setattr(export_hf, "MAX_SHARDS", 3)
    with pytest.raises(LimitExceeded, match="files, at most 3: make them larger"):
        exported(result, tmp_path / "work", tmp_path / "out", shard_bytes=1)


def test_a_model_of_this_network_is_exported_with_a_config(tmp_path):
    from blyan_tile.create import CreateJob

    model = model_of("tiny", "here")
    work = tmp_path / "work"
    result = create(CreateJob(model, 0, str(work), False), lambda progress: None)
    groups = tuple(
        TileFiles(tuple(str(work / tile.weights.hex()) for tile in tiles))
        for tiles in result.groups
    )
    job = ExportJob(str(tmp_path / "out"), model, groups, None, None, 1 << 40)
    export_model(job, lambda progress: None)
    back = imported(tmp_path / "out", tmp_path / "back")
    assert back.architecture == model.architecture and back.groups == result.groups
    import tokenizers

    foreign = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    text = "naïve €\n\t 'quoted'  x"
    assert foreign.encode(text).ids == list(text.encode())
    assert foreign.decode(list(text.encode())) == text


def change(folder: Path, name: str, how) -> None:
    """Change one tensor of a folder with one file."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / SINGLE)
    made_of = how(tensors.pop(name))
    if made_of is not None:
        tensors[name] = made_of
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def spoilt(value: float):
    def how(array):
        array.reshape(-1)[-1] = value
        return array

    return how


EXPERT = "model.layers.0.block_sparse_moe.experts.1.w2.weight"


@pytest.mark.parametrize(
    "name, how, said",
    [
        (EXPERT, lambda a: None, f"the files have no tensor '{EXPERT}'"),
        (
            EXPERT,
            lambda a: a.T.copy(),
            f"{SINGLE}: tensor '{EXPERT}' has shape [96, 64]",
        ),
        (EXPERT, spoilt(np.nan), f"{SINGLE}: tensor '{EXPERT}' has NaN or infinity"),
        (EXPERT, spoilt(-np.inf), f"{SINGLE}: tensor '{EXPERT}' has NaN or infinity"),
        ("model.norm.weight", spoilt(np.nan), "'model.norm.weight' has NaN"),
        (EXPERT, lambda a: a.astype(np.float64), f"'{EXPERT}' is F64; only F32, F16"),
        (
            "model.layers.0.input_layernorm.weight",
            lambda a: a.astype(np.float16),
            "vectors of a layer are kept in one tile, so they must agree",
        ),
    ],
)
def test_a_wrong_tensor_is_named_with_its_file(tmp_path, name, how, said):
    folder = folder_of(tmp_path / "in")
    change(folder, name, how)
    with pytest.raises(ProtocolError) as caught:
        imported(folder, tmp_path / "work")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_folder_is_named(tmp_path):
    def told(folder):
        with pytest.raises(ProtocolError) as caught:
            imported(folder, tmp_path / "work")
        assert "\n" not in str(caught.value) and len(str(caught.value).encode()) < 512
        return str(caught.value)

    folder = folder_of(tmp_path / "in")
    change(folder, EXPERT, lambda a: a)
    tensors = {f"extra.{n}": np.zeros(2, np.float32) for n in range(9)}
    save_file(tensors, folder / SINGLE)
    assert "the files have no tensor 'model.embed_tokens.weight'" in told(folder)
    assert " more" in told(folder)
    shutil.rmtree(folder)
    folder = folder_of(tmp_path / "in")
    change(folder, EXPERT, lambda a: a)
    from safetensors.numpy import load_file

    save_file(load_file(folder / SINGLE) | tensors, folder / SINGLE)
    said = told(folder)
    assert said.startswith(
        f"{SINGLE}: config.json leaves no place for tensor 'extra.0'"
    )
    assert said.endswith("and 6 more")
    tokenizer = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(tokenizer.replace(b'"BPE"', b'"Evil"'))
    assert "tokenizer.json" in told(folder)
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in told(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "gpt2" in told(folder)
    for raw in (b"[]", b"{", b"\xff", b"[" * 9999):
        (folder / "config.json").write_bytes(raw)
        assert "config.json is not" in told(folder)
    (folder / "config.json").unlink()
    assert "no config.json" in told(folder)
    (folder / "config.json").symlink_to("/etc/hostname")
    assert "is a link" in told(folder)


def test_a_head_beside_tied_embeddings_must_be_the_embedding(tmp_path):
    folder = folder_of(tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ProtocolError, match="'lm_head.weight' is not 'model.embed"):
        imported(folder, tmp_path / "work")
    from safetensors.numpy import load_file

    table = load_file(folder / SINGLE)["model.embed_tokens.weight"]
    change(folder, "lm_head.weight", lambda array: table)
    result = imported(folder, tmp_path / "work")
    exported(result, tmp_path / "work", tmp_path / "out")
    before = tensors_in(folder)
    del before["lm_head.weight"]
    assert tensors_in(tmp_path / "out") == before


def test_a_killed_import_goes_on_where_it_was(tmp_path):
    """Groups that were taken over are not read again; a changed file starts anew."""
    folder, work = folder_of(tmp_path / "in"), tmp_path / "work"

    class Killed(Exception):
        pass

    def until(last):
        def report(progress):
            journal = Journal(work)
            if not (work / f"{progress.done - 1}.taken").exists():
                for tile in journal.noted(progress.done - 1):
                    (work / tile.weights.hex()).unlink()  # the daemon took it
                journal.taken(progress.done - 1)
            if progress.done == last:
                raise Killed

        return report

    with pytest.raises(Killed):
        imported(folder, work, until(3))
    result = imported(folder, work)
    left = {path.name for path in work.iterdir()}
    taken = {tile.weights.hex() for tiles in result.groups[:3] for tile in tiles}
    fresh = {tile.weights.hex() for tiles in result.groups[3:] for tile in tiles}
    assert not taken & left and fresh <= left
    whole = imported(folder, tmp_path / "other")
    assert whole == result
    Journal(work).lost(0)
    assert imported(folder, work) == result
    assert {tile.weights.hex() for tile in result.groups[0]} <= {
        path.name for path in work.iterdir()
    }
    os.utime(folder / SINGLE, ns=(1, 1))
    assert imported(folder, work) == result
    assert taken <= {path.name for path in work.iterdir()}


def test_every_tile_is_as_the_layout_cuts_it(tmp_path):
    """Against the whole tensors in memory, for matrices of several tiles."""
    from safetensors.numpy import load_file

    from blyan_tile import tblock
    from blyan_tile.layout import split
    from blyan_tile.model.families import tensor_names

    shape = SHAPE | {"hidden_size": 72, "intermediate_size": 20_000}
    made.make(tmp_path / "in", shape)
    result = imported(tmp_path / "in", tmp_path / "work")
    tensors = load_file(tmp_path / "in" / SINGLE)
    with open_checkpoint(str(tmp_path / "in")) as opened:
        family = import_hf.family_of(import_hf.companions_in(opened))
    parameters = {our: tensors[their] for our, their in tensor_names(family).items()}
    layout = laid_out(family.architecture)
    assert any(len(group.tiles) > 3 for group in layout.groups)
    for group, tiles in zip(layout.groups, result.groups, strict=True):
        cut = split(group, parameters)
        assert [tblock.root_of(tile) for tile in cut] == [t.weights for t in tiles]


WATCHED = """
import resource, sys
from pathlib import Path
from blyan_tile.model.import_hf import ImportJob, import_checkpoint
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def report(progress):
    for path in Path(sys.argv[2]).iterdir():
        if len(path.name) == 64:
            path.unlink()
import_checkpoint(ImportJob(sys.argv[1], sys.argv[2]), report)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
"""


@long
def test_a_model_larger_than_the_memory_used(tmp_path):
    """A sparse checkpoint of 1.2 GB is imported with less than 64 MiB more than before."""
    shape = made.BIG | {"hidden_size": 1024, "intermediate_size": 6000}
    folder = tmp_path / "in"
    folder.mkdir()
    made.write_json(folder / "config.json", made.config_of(shape))
    made.make_tokenizer(folder, 400)
    header, at = {}, 0
    for name, size in made.shapes_of(shape):
        end = at + 4 * int(np.prod(size))
        header[name] = {"dtype": "F32", "shape": size, "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    with open(folder / SINGLE, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + at)
    assert at > 1e9
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder), str(tmp_path / "work")],
        capture_output=True,
        text=True,
        check=True,
    )
    page = 1 if sys.platform == "darwin" else 1024
    assert int(ran.stdout) * page < 64 << 20
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * page < at // 4
