"""OpenWebText, the open copy of GPT-2's training text (Gokaslan and Cohen 2019)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from data.huggingface import HuggingFace


class OpenWebText(HuggingFace):
    """A data set of the hub whose validation set is compared with the one of published losses.

    Read from its .parquet files, of the repository's main branch or else of the branch that the hub's converter writes.
    All rows of the published corpus have text, as its authors left out documents of fewer than 128 tokens.
    """

    name = "openwebtext"
    # GPT-2 tokenizer, end of text included, split at 0.0005 with seed 2357: nanoGPT, data/openwebtext/readme.md.
    reference_tokens: ClassVar[Mapping[str, int]] = {"train": 9_035_582_198, "val": 4_434_897}

    @override
    def verdict(self, meta: Mapping[str, Any]) -> str | None:
        found, reference = meta["splits"]["val"]["n_tokens"], self.reference_tokens["val"]
        if found == reference:
            return f"the validation set is the reference one by its count of {reference:,} tokens"
        return (
            f"a different validation set: {found:,} tokens, the reference one has {reference:,} (GPT-2 tokenizer, all "
            "documents, val_fraction 0.0005, split_seed 2357); its losses do not compare with published ones"
        )
