"""A codebook that follows the latents: an exponential moving average, with unused codes moved to where the latents
are (van den Oord et al. 2017, appendix; dead codes as in Dhariwal et al. 2020). Everything on the unit sphere,
as the tokenizer quantises by cosine.

The codebook is not the optimizer's: a moving average needs no gradient, and stays right whoever shards the rest.

Shapes: V codes, C width, M latents.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class MovingCodebook(nn.Module):
    """Moving averages over the table of an `nn.Embedding`, which is kept elsewhere and written in place."""

    def __init__(self, num_codes: int, width: int, decay: float, revive_below: float, seed: int):
        super().__init__()
        self.decay, self.revive_below, self.seed = decay, revive_below, seed
        self.register_buffer("uses", torch.zeros(num_codes))
        self.register_buffer("sums", torch.zeros(num_codes, width))
        self._seen: list[tuple[Tensor, Tensor]] = []

    def see(self, latents: Tensor, codes: Tensor) -> None:
        """Remember unit latents (M, C) and their codes (M,) until the step's end."""
        self._seen.append((latents.detach().float(), codes.detach()))

    @torch.no_grad()
    def follow(self, table: Tensor, step: int) -> None:
        """Move `table` (V, C) towards the latents that were seen since the last call, on all workers together."""
        latents, codes = (torch.cat(part) for part in zip(*self._seen, strict=True))
        self._seen.clear()
        uses = torch.bincount(codes, minlength=len(self.uses)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, latents)
        candidates = self._candidates(latents, step)
        if dist.is_initialized():
            for tensor in (uses, sums):
                dist.all_reduce(tensor)
            dist.broadcast(candidates, 0)
        total = uses.sum()
        self.uses.mul_(self.decay).add_((1 - self.decay) * uses)
        self.sums.mul_(self.decay).add_((1 - self.decay) * sums)
        dead = self.uses < self.revive_below * total / len(self.uses)
        self.sums[dead] = candidates[dead] * total / len(self.uses)
        self.uses[dead] = total / len(self.uses)
        table.copy_(F.normalize(self.sums, dim=-1))

    def _candidates(self, latents: Tensor, step: int) -> Tensor:
        """A latent (V, C) for each code, in case it is dead; the same choice for the same seed and step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        chosen = torch.randint(len(latents), (len(self.uses),), generator=generator).to(latents.device)
        return latents[chosen].contiguous()

    def measures(self) -> dict[str, float]:
        """codebook_use: share of codes in use (above a tenth of an even share); perplexity: exp of the use's entropy."""
        share = self.uses / self.uses.sum().clamp_min(1e-9)
        entropy = -(share * share.clamp_min(1e-12).log()).sum()
        used = (share > 0.1 / len(share)).float().mean()
        return {"codebook_use": float(used), "perplexity": float(entropy.exp())}
