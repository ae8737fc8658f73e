"""Datasets: add one, list them, show one."""

from __future__ import annotations

from blyan_proto.rpc.errors import (
    DATASET_AMBIGUOUS,
    DATASET_EXISTS,
    DATASET_UNKNOWN,
    DIRECTORY_UNREADABLE,
)
from blyan_proto.rpc.parts import DATASET_HELP, Progress
from blyan_proto.rpc.spec import (
    LONG_DEADLINE_S,
    Address,
    Id,
    Method,
    arg,
    declare,
    record,
)


@record
class AddDataset:
    """Make a dataset of text files and publish it."""

    directory: str | None = arg(
        "folder on the daemon's machine; default: the text that comes with its Python",
        default=None,
        positional=True,
        path=True,
    )
    max_mb: int = arg("most text to take, MB", default=16, low=1, high=2048)
    name: str | None = arg("its name; default: from the folder", default=None)
    license: str = arg("licence of the text", default="")


@record
class Added:
    """A dataset that is published."""

    dataset_id: Id = arg("dataset block id")
    name: str = arg("dataset name")
    blob: Id = arg("root of its archive")
    files: int = arg("files taken")
    bytes: int = arg("bytes of text")
    held_out_files: int = arg("files kept aside for evaluation")
    held_out_bytes: int = arg("bytes kept aside for evaluation")
    near_duplicates: int = arg("files dropped as near-duplicates of held-out ones")


add = declare(
    Method(
        "data.add",
        AddDataset,
        Added,
        errors=(DIRECTORY_UNREADABLE, DATASET_EXISTS),
        streams=Progress,
        deadline_s=LONG_DEADLINE_S,
    )
)


@record
class ListDatasets:
    """List the datasets of this network."""


@record
class DatasetLine:
    """One dataset in a list."""

    name: str = arg("dataset name")
    dataset_id: Id = arg("dataset block id")
    files: int = arg("files in it")
    bytes: int = arg("bytes of its archive")
    tier: str = arg("pending, experimental, silver, gold or rejected")
    local: bool = arg("this node holds the archive")


@record
class Datasets:
    """The datasets of this network."""

    datasets: list[DatasetLine] = arg("datasets, oldest first")


list_ = declare(Method("data.list", ListDatasets, Datasets, public=True))


@record
class GetDataset:
    """Show one dataset."""

    dataset: str | None = arg(
        DATASET_HELP,
        default=None,
        positional=True,
    )


@record
class Dataset:
    """One dataset."""

    name: str = arg("dataset name")
    dataset_id: Id = arg("dataset block id")
    account: Address = arg("who published it")
    blob: Id = arg("root of its archive")
    files: int = arg("files in it")
    bytes: int = arg("bytes of its archive")
    held_out_ppm: int = arg("share of files kept aside, parts per million")
    near_duplicates: int = arg("files dropped as near-duplicates of held-out ones")
    license: str = arg("licence of the text")
    source: str = arg("where the text comes from")
    tier: str = arg("pending, experimental, silver, gold or rejected")
    parent: Id | None = arg("dataset that this one replaces")
    local: bool = arg("this node holds the archive")


show = declare(
    Method(
        "data.show",
        GetDataset,
        Dataset,
        errors=(DATASET_UNKNOWN, DATASET_AMBIGUOUS),
        public=True,
    )
)
