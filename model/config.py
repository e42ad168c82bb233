"""The shape of a GPT; imports nothing heavy, so that a configuration can be checked without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPTConfig:
    """GPT-2's hyperparameters and the options that papers vary.

    vocab_size counts real token ids; the embedding has padded_vocab_size rows. Raises ValueError if the numbers do
    not fit together.
    """

    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int  # longest sequence, in tokens
    dropout: float = 0.0
    bias: bool = True  # of linear layers and layer norms
    tied_head: bool = True  # the head is the token embedding
    scale_attn_by_inverse_layer_idx: bool = False  # Mistral's GPT-2: layer i's scores are divided by i + 1
    gelu: str = "tanh"  # GPT-2's approximation; "erf": the exact one, nanoGPT's, 2.5 times faster on a CPU
    qk_norm: bool = False  # layer norm of queries and keys (Dehghani et al. 2023, arXiv:2302.05442)
    vocab_multiple: int = 64  # embedding rows are padded to a multiple of it, which matrix kernels like

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_layer", "n_head", "n_embd", "block_size", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be >= 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout} must lie in [0, 1)")
        if self.gelu not in ("tanh", "erf"):
            raise ValueError(f"model.gelu={self.gelu!r} must be tanh or erf")
        if self.n_embd % self.n_head:
            below = self.n_embd // self.n_head * self.n_head
            nearest = " or ".join(str(n) for n in (below, below + self.n_head) if n)
            raise ValueError(
                f"model.n_embd={self.n_embd} must be a multiple of model.n_head={self.n_head}; nearest: {nearest}"
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token embedding and of the head."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple
