"""Building what turns text into tokens, and messages into text."""

from __future__ import annotations

from dataclasses import dataclass

from blyan_proto.block.model import Model
from blyand.compute import Worker
from blyand.foundation import Base
from blyand.inference.grammars import Grammars
from blyand.inference.templates import Templates
from blyand.inference.vocabularies import Vocabularies
from blyand.protocols.fetch import Fetcher
from blyand.replica import Replica
from blyand.rules.records import MODELS


@dataclass(frozen=True)
class Language:
    """The tokenizers and chat templates of all models, and the schemas of answers."""

    vocabularies: Vocabularies
    grammars: Grammars
    templates: Templates


def build_language(
    base: Base,
    replica: Replica,
    fetcher: Fetcher,
    reader: Worker,
    renderer: Worker,
    grammarian: Worker,
) -> Language:
    """Return what reads text.

    `reader` runs tokenizers, `renderer` templates, `grammarian` schemas.
    """

    def is_own(model: Model) -> bool:
        return any(
            record.model == model and record.creator == base.key.account
            for record in MODELS.scan(replica.view)
        )

    vocabularies = Vocabularies(fetcher.get, base.stores.blobs.path, reader)
    allowed = base.config.inference.allow_templates
    templates = Templates(vocabularies, renderer, allowed, is_own)
    return Language(vocabularies, Grammars(grammarian), templates)
