"""What every job of a worker process speaks: its progress.

The messages of one job stand beside its function (``learner.LearnJob`` beside
``learner.learn``); a module that declares them imports torch only inside the function,
so that the daemon can name a job without loading torch.
"""

from __future__ import annotations

from blyan_proto.codec import U32, message
from blyan_proto.types import Text


@message
class Progress:
    """`done` of `total` steps are behind us; `note` is one line for people."""

    done: U32
    total: U32  # 0: not known
    note: Text
