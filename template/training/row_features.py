"""Vectors of the rows of a pool, by which a dataset is proposed before anything is trained on it.

A row's vector is what it adds to an optimizer step, so a dataset's is the sum of its rows' vectors. The target is the
mean over all rows of the pool, which is the evaluation set. `match_target` chooses rows whose sum points to it.

Gradients: the idea, and the ranking by cosine, are those of LESS (https://arxiv.org/abs/2402.04333): the gradient of
the adapter, projected at random to few numbers, predicts to first order how training on one row changes the loss of
another. Unlike there, the adapter is not trained before, and each tensor's gradients are scaled as a whole, so that all
tensors weigh alike: Adam makes their steps alike, too.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from template.data.encoding import EncodedRow
from template.data.rows import Row
from template.errors import HostError
from template.records import Progress
from template.training import determinism, loop
from template.training.loop import OnProgress
from template.training.model import ScoringModel
from template.training.packing import pack_rows

# Numbers that a tensor's gradient is projected to, and numbers of a row's words.
_GRADIENT_WIDTH = 16
_WORD_WIDTH = 1024

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class RowFeatures:
    """contributions (N, D) float32: what each row adds to a step. target (D,): their wanted direction."""

    contributions: torch.Tensor
    target: torch.Tensor

    @classmethod
    def from_bytes(cls, content: bytes) -> "RowFeatures":
        """Read what `to_bytes` returned."""
        return cls(**load_tensors(content))

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file."""
        return save_tensors(vars(self))

    def similarity(self, rows: Sequence[int]) -> float:
        """Return the cosine of the sum of these rows with the target."""
        total = self.contributions[list(rows)].sum(0)
        return float(total @ self.target / (total.norm() * self.target.norm()).clamp_min(1e-30))

    def rank(self) -> list[int]:
        """Return all rows, those with the highest cosine first."""
        cosines = self.contributions @ self.target / self.contributions.norm(dim=1).clamp_min(1e-30)
        order: list[int] = cosines.argsort(descending=True, stable=True).tolist()
        return order

    def match_target(self, count: int, may_add: Callable[[int], bool]) -> list[int]:
        """Choose `count` rows, or all that may be added, one by one for the best cosine of their sum.

        A row that repeats what the sum has already is worth less than in `rank`. may_add: called with the row that
        would be next, which is left out for good where it returns False.
        """
        along = self.contributions @ (self.target / self.target.norm().clamp_min(1e-30))
        squares = self.contributions.square().sum(1)
        total = torch.zeros_like(self.target)
        chosen: list[int] = []
        is_left = torch.ones(len(squares), dtype=torch.bool)
        while len(chosen) < count and bool(is_left.any()):
            norms = (total.square().sum() + 2 * (self.contributions @ total) + squares).clamp_min(1e-30).sqrt()
            cosines = (along[chosen].sum() + along) / norms
            best = int(cosines.masked_fill(~is_left, -math.inf).argmax())
            is_left[best] = False
            if may_add(best):
                chosen.append(best)
                total += self.contributions[best]
        return chosen


def gradient_features(
    model: ScoringModel, rows: Sequence[EncodedRow], on_progress: OnProgress = loop.ignore_progress
) -> RowFeatures:
    """Compute the gradient of the adapter as it is, row by row, without dropout.

    Raises: HostError for a gradient that is not finite.
    """
    parameters = list(model.adapter_parameters.values())
    generator = determinism.make_generator(0, "projection")
    signs = [
        torch.randint(0, 2, (parameter.numel(),), generator=generator).to(model.device).float().mul_(2).sub_(1)
        for parameter in parameters
    ]
    total_tokens, done_tokens = sum(len(row.input_ids) for row in rows), 0

    def differentiate(index: int) -> torch.Tensor:
        (pack,) = pack_rows(rows, [index], len(rows[index].input_ids), model.device, model.uses_varlen)
        gradients = torch.autograd.grad(model.target_losses(pack).sum(), parameters)
        return torch.stack([_fold(gradient, sign) for gradient, sign in zip(gradients, signs, strict=True)]).cpu()

    folded: list[torch.Tensor] = []
    with determinism.thread_lanes(loop.lane_count()) as executor:
        run = executor.map if model.device.type == "cpu" else map
        for index, vector in enumerate(run(differentiate, range(len(rows)))):
            if not bool(vector.isfinite().all()):
                raise HostError(f"the gradient of the pool's row {index + 1} is not finite for the untouched base")
            folded.append(vector)
            done_tokens += len(rows[index].input_ids)
            on_progress(Progress(stage="gradients", done=done_tokens, total=total_tokens))
    vectors = torch.stack(folded)  # (N, tensors, width)
    # A product of two rows is divided by the tensor's root mean square.
    scale = vectors.square().mean((0, 2), keepdim=True).pow(0.25)
    contributions = (vectors / scale.clamp_min(1e-30)).flatten(1)
    counts = torch.tensor([row.target_count for row in rows]).unsqueeze(1)
    return RowFeatures(contributions, (contributions / counts).mean(0))


def _fold(gradient: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Project a tensor to `_GRADIENT_WIDTH` numbers: signed sums, which keep products in the mean."""
    signed = gradient.flatten() * signs
    padding = -len(signed) % _GRADIENT_WIDTH
    return torch.nn.functional.pad(signed, (0, padding)).view(-1, _GRADIENT_WIDTH).sum(0)


def word_features(rows: Sequence[Row]) -> RowFeatures:
    """Count each row's words, rare ones with more weight, in a table of fixed width."""
    counts = [Counter(_WORD.findall(" ".join(_texts(row)).casefold())) for row in rows]
    rows_with = Counter(word for words in counts for word in words)
    contributions = torch.zeros(len(rows), _WORD_WIDTH)
    for vector, words in zip(contributions, counts, strict=True):
        for word, count in words.items():
            digest = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
            vector[digest % _WORD_WIDTH] += count * math.log(1 + len(rows) / rows_with[word])
    return RowFeatures(contributions, torch.nn.functional.normalize(contributions, dim=1).mean(0))


def _texts(row: Row) -> list[str]:
    return [row.system or "", *(message.content for message in row.messages)]
