"""The queue of keys that serve as negatives of the cross-lingual contrast (arXiv 2007.07834, section 4.3)."""

import torch
from torch import Tensor


class KeyQueue:
    """Ring of the latest key vectors, with a cursor and a count of the slots filled so far.

    Slots that were never written are no negatives, so any corpus is large
    enough: nothing has to be filled beforehand. It is kept outside the
    trained module: as a buffer DDP would broadcast its 402 MB at every step.

    Args:
        size: Number of keys held, Q; the paper's is 131,072.
        dim: Length D of a key vector.
        device: Where the keys lie.

    Attributes:
        keys: (Q, D), fp32.
        cursor: Slot that the next key is written to.
        num_filled: Number of slots written so far, at most Q.

    Raises:
        ValueError: If `size` or `dim` is less than 1.
    """

    def __init__(self, size: int, dim: int, *, device: torch.device | str = "cpu") -> None:
        if size < 1 or dim < 1:
            raise ValueError(f"queue size and vector length must be at least 1, found {size} and {dim}.")
        self.keys = torch.zeros(size, dim, dtype=torch.float32, device=device)
        self.cursor = 0
        self.num_filled = 0

    @property
    def size(self) -> int:
        """Number of slots, Q."""
        return self.keys.shape[0]

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write keys (B, D) at the cursor, oldest overwritten first; of more than Q keys the last Q remain.

        Call it after the backward pass: the loss keeps a view of the queue, and writing under it is an error.

        Raises:
            ValueError: If `keys` is not (B, D).
        """
        if keys.dim() != 2 or keys.shape[1] != self.keys.shape[1]:
            raise ValueError(f"keys must be (B, {self.keys.shape[1]}), found {tuple(keys.shape)}.")
        skipped = max(0, len(keys) - self.size)
        keys = keys[skipped:]
        start = (self.cursor + skipped) % self.size
        until_end = min(len(keys), self.size - start)
        self.keys[start : start + until_end] = keys[:until_end]
        self.keys[: len(keys) - until_end] = keys[until_end:]
        self.cursor = (start + len(keys)) % self.size
        self.num_filled = min(self.num_filled + len(keys) + skipped, self.size)

    def negatives(self) -> Tensor:
        """Return the filled slots, (num_filled, D): a view, not a copy."""
        return self.keys[: self.num_filled]

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything a resumed run needs, as tensors."""
        return {
            "keys": self.keys,
            "cursor": torch.tensor(self.cursor),
            "num_filled": torch.tensor(self.num_filled),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: If the stored queue has another shape.
        """
        if state["keys"].shape != self.keys.shape:
            raise ValueError(
                f"the saved queue is {tuple(state['keys'].shape)}, this run's is {tuple(self.keys.shape)}; "
                "resume with the same queue_size, or start a new run from the saved model."
            )
        self.keys.copy_(state["keys"])
        self.cursor = int(state["cursor"])
        self.num_filled = int(state["num_filled"])
