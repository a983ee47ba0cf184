r"""A constraint on the keys inside an annotation; values stay free.

Keys are encoded as separate pieces ("topic:", later "\nplace:"), and values contain no line break.
Therefore a token with a line break begins a key, and a trie over the ids of the allowed keys
determines what may follow.
Shapes: B sequences, V vocabulary, N trie nodes, C maximum children of a node, K keys.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from anchored.annotation import Schema
from anchored.tokenizer import AnchoredTokenizer

START, VALUE = 0, 1
_UNBOUNDED = 1 << 20


@dataclass
class _Node:
    """A trie node: children (id -> node number), keys that each leads to, keys that each ends."""

    children: dict[int, int] = field(default_factory=dict)
    reaches: dict[int, set[int]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)


class KeyConstraint:
    """A constraint that allows only the keys in `names`, each as often as the schema allows.

    Args:
        names: keys of `schema` that may be sampled.
        texts: the decoded text of each id.
        vocab_size: V, the width of the model's logits.
    """

    def __init__(
        self,
        schema: Schema,
        names: Collection[str],
        tokenizer: AnchoredTokenizer,
        texts: Sequence[str],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._names = [key.name for key in schema.keys if key.name in names]
        self._limits = [key.limit or _UNBOUNDED for key in schema.keys if key.name in names]
        breaks = {i for i, text in enumerate(texts) if "\n" in text}
        nodes = self._trie(tokenizer, breaks)
        self._tabulate(nodes, vocab_size, device)
        self._base[START, tokenizer.control.close] = True
        self._base[VALUE] = True
        self._base[VALUE, sorted(breaks)] = False

    def _trie(self, tokenizer: AnchoredTokenizer, breaks: Collection[int]) -> list[_Node]:
        nodes = [_Node(), _Node()]
        for key, name in enumerate(self._names):
            _insert(nodes, START, tokenizer.encode(f"{name}:"), key)
            later = tokenizer.encode(f"\n{name}:")
            # Some tokenizers put a token of their own before the line break.
            first = next(place for place, i in enumerate(later) if i in breaks)
            _insert(nodes, VALUE, later[first:], key)
        return nodes

    def _tabulate(self, nodes: Sequence[_Node], vocab_size: int, device: torch.device) -> None:
        widest = max(1, *(len(node.children) for node in nodes))
        keys = len(self._names)
        shape = (len(nodes), widest)
        child_ids = torch.full(shape, vocab_size)  # a dummy column, which `permitted` cuts off
        child_nodes = torch.full(shape, VALUE)
        reaches = torch.zeros(*shape, keys, dtype=torch.bool)
        uses = torch.zeros(*shape, keys, dtype=torch.bool)
        for n, node in enumerate(nodes):
            for c, (token, child) in enumerate(node.children.items()):
                child_ids[n, c], child_nodes[n, c] = token, child
                reaches[n, c, list(node.reaches[token])] = True
                if token in node.ends:
                    uses[n, c, node.ends[token]] = True
        self._child_ids, self._child_nodes = child_ids.to(device), child_nodes.to(device)
        self._reaches, self._uses = reaches.to(device), uses.to(device)
        self._base = torch.zeros(len(nodes), vocab_size + 1, dtype=torch.bool, device=device)

    def begin(self, pinned: Sequence[Mapping[str, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nodes (B,) and remaining tags per key (B, K) after the pinned tags."""
        nodes = [VALUE if counts else START for counts in pinned]
        limits = list(zip(self._names, self._limits, strict=True))
        left = [[limit - counts.get(name, 0) for name, limit in limits] for counts in pinned]
        device = self._base.device
        return torch.tensor(nodes, device=device), torch.tensor(left, device=device)

    def permitted(self, nodes: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Return the ids (B, V) that may come next, given nodes (B,) and remaining tags (B, K)."""
        open_children = (self._reaches[nodes] & (left > 0)[:, None, :]).any(-1)
        return self._base[nodes].scatter_(1, self._child_ids[nodes], open_children)[:, :-1]

    def advance(
        self, nodes: torch.Tensor, left: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nodes (B,) and remaining tags (B, K) after `ids` (B,)."""
        hits = self._child_ids[nodes] == ids[:, None]
        found, child = hits.any(-1), hits.to(torch.int8).argmax(-1)
        left = left - (self._uses[nodes, child] & found[:, None]).long()
        return torch.where(found, self._child_nodes[nodes, child], VALUE), left


def _insert(nodes: list[_Node], root: int, ids: Sequence[int], key: int) -> None:
    """Add the ids of a key below `root`; the last id leads to the value."""
    node = nodes[root]
    for token in ids[:-1]:
        node.reaches.setdefault(token, set()).add(key)
        if token not in node.children:
            node.children[token] = len(nodes)
            nodes.append(_Node())
        node = nodes[node.children[token]]
    node.reaches.setdefault(ids[-1], set()).add(key)
    node.children[ids[-1]] = VALUE
    node.ends[ids[-1]] = key
