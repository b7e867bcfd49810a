"""Small networks for the PyTorch front end, each with one way of using its parameters."""

import torch
import torch.nn.functional as F
from torch import nn


def sequential(*layers):
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Self-attention of the library, averaged."""

    def __init__(self, **options):
        super().__init__()
        self.a = nn.MultiheadAttention(12, 2, batch_first=True, **options)

    def forward(self, x):
        return self.a(x, x, x)[0].mean(1)


class CrossAttention(nn.Module):
    """Attention with keys and values of other widths: three separate projections."""

    def __init__(self):
        super().__init__()
        self.a = nn.MultiheadAttention(12, 2, kdim=10, vdim=9, batch_first=True)

    def forward(self, q, k, v):
        return self.a(q, k, v)[0].mean(1)


class Encoder(nn.Module):
    """An encoder layer under a causal mask."""

    def __init__(self):
        super().__init__()
        self.t = nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0, batch_first=True)
        self.o = nn.Linear(12, 3)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.o(self.t(x, src_mask=mask).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer read at its last step, all outputs of its kind used."""

    def __init__(self, kind, **options):
        super().__init__()
        self.r = kind(4, 5, batch_first=True, **options)
        width = options.get("proj_size") or 5
        self.o = nn.Linear(width * (1 + options.get("bidirectional", False)), 3)

    def forward(self, x):
        out, last = self.r(x)
        state = last[1] if isinstance(last, tuple) else last
        return self.o(out[:, -1]) + state.sum((0, 2))[:, None]


class CellLoop(nn.Module):
    """A cell called step by step."""

    def __init__(self, kind):
        super().__init__()
        self.r = kind(4, 5)
        self.o = nn.Linear(5, 3)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.r(step, state)
        return self.o(state[0] if isinstance(state, tuple) else state)


class UsedTwice(nn.Module):
    """One layer applied three times, once without gradient."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 6)

    def forward(self, x):
        with torch.no_grad():
            gate = torch.sigmoid(self.l(x))
        return self.l(torch.tanh(self.l(x))) * gate


class TiedReadout(nn.Module):
    """A table that embeds and reads out."""

    def __init__(self, vocabulary=30, width=8):
        super().__init__()
        self.e = nn.Embedding(vocabulary, width)
        self.l = nn.Linear(width, width)
        self.o = nn.Linear(width, vocabulary, bias=False)
        self.o.weight = self.e.weight

    def forward(self, ids):
        return self.o(torch.tanh(self.l(self.e(ids))).mean(1))


class TiedAutoencoder(nn.Module):
    """One matrix used as it is and transposed."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(9, 5))

    def forward(self, x):
        return torch.tanh(x @ self.w) @ self.w.T


class TiedConvolutions(nn.Module):
    """One kernel used by a convolution and by its adjoint."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 8, 3) / 5)

    def forward(self, x):
        return F.conv_transpose1d(torch.tanh(F.conv1d(x, self.w)), self.w).mean(2)


class Bare(nn.Module):
    """Parameters without a module of their own."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.scale = nn.Parameter(torch.randn(6))
        self.w = nn.Parameter(torch.randn(6, 6))
        self.l = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), 1, 6), x], 1) * self.scale
        return self.l(torch.tanh(x @ self.w).mean(1))


class FusedParts(nn.Module):
    """A fused matrix whose parts are used apart, by `chunk`, by slices and by unpacking."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(30, 10) / 3)
        self.kv = nn.Parameter(torch.randn(10, 20) / 3)
        self.stack = nn.Parameter(torch.randn(2, 10, 10) / 3)

    def forward(self, x):
        q, k, v = (F.linear(x, w) for w in self.qkv.chunk(3))
        x = F.scaled_dot_product_attention(q, k, v)
        x = x @ self.kv[:, :10] + torch.tanh(x @ self.kv[:, 10:])
        first, second = self.stack
        return (torch.tanh(x @ first) @ second).mean(1)


class Joined(nn.Module):
    """Parameters joined into one weight, one of them also used alone."""

    def __init__(self):
        super().__init__()
        self.q = nn.Parameter(torch.randn(10, 9) / 3)
        self.k = nn.Parameter(torch.randn(8, 9) / 3)
        self.a = nn.Parameter(torch.randn(9, 18) / 3)
        self.b = nn.Parameter(torch.randn(9, 18) / 3)
        self.kernels = nn.ParameterList([nn.Parameter(torch.randn(4, 3, 2)) for _ in range(2)])
        self.mixed = nn.Parameter(torch.randn(9, 9) / 3)

    def forward(self, x):
        x = torch.tanh(
            torch.einsum("ni,gio->ngo", x, torch.stack([self.mixed, 0.5 * self.mixed.T]))
        )
        x = torch.tanh(F.linear(x.sum(1), torch.cat([self.q, self.k])))
        x = torch.tanh(x @ torch.cat([self.a, -self.b]).T) @ self.a.T
        return F.conv1d(x.reshape(-1, 3, 3), torch.cat(list(self.kernels)))


class LearnedQueries(nn.Module):
    """Learned queries that a projection meets directly, and tokens joined to the data."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 2, 12))
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.project = nn.Linear(12, 12)
        self.values = nn.Linear(12, 12)
        self.low = nn.Parameter(torch.randn(12, 2))
        self.rank = nn.Parameter(torch.randn(2, 12))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), 1, 12), x], 1)
        v = self.values(x)
        q = self.project(self.queries).expand(len(x), 2, 12)
        return F.scaled_dot_product_attention(q, v, v) @ (self.low @ self.rank)


class Functional(nn.Module):
    """Products of matrices in every spelling that reaches a weight."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Parameter(torch.randn(8, 2, 5) / 3)
        self.per_head = nn.Parameter(torch.randn(2, 5, 6) / 3)
        self.scaled = nn.Parameter(torch.randn(6, 12) / 3)
        self.added = nn.Parameter(torch.randn(12, 8) / 3)
        self.bias = nn.Parameter(torch.randn(8))
        self.pairs = nn.Bilinear(8, 8, 5)
        self.last = nn.Parameter(torch.randn(5, 2, 3))
        self.left = nn.Parameter(torch.randn(9, 6))

    def forward(self, x):
        n = len(x)
        x = torch.einsum("nti,iho->ntho", x, self.heads).tanh()
        x = torch.einsum("...ho,hop->...hp", x, self.per_head).sum(2)
        x = torch.tanh(x @ (0.5 * self.scaled / 2))
        x = torch.addmm(self.bias, x.reshape(-1, 12), self.added, beta=0.3, alpha=2.0)
        x = self.pairs(x.tanh(), x).reshape(n, -1, 5)
        x = torch.tensordot(x, self.last, 1).reshape(n, -1, 6).sum(1)
        return (self.left @ x.T).T


class Batched(nn.Module):
    """Weights with an axis of blocks."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 6, 6) / 3)
        self.more = nn.Parameter(torch.randn(3, 6, 6) / 3)

    def forward(self, x):
        x = torch.tanh(torch.matmul(x[:, None, None], self.experts))
        shape = (len(x), 3, 1, 6)
        rows = [torch.baddbmm(torch.zeros(3, 1, 6, dtype=x.dtype), one, self.more) for one in x]
        return torch.stack(rows).reshape(shape).sum((1, 2))


class RowsByIndex(nn.Module):
    """Look-ups by indexing, with negative indices."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(40, 3))
        self.other = nn.Parameter(torch.randn(40, 2, 3))

    def forward(self, ids):
        x = self.table[ids] + self.table[-1 - ids]
        return x.sum(1) + torch.stack([self.other.index_select(0, i) for i in ids]).sum((1, 2))


class LowRank(nn.Module):
    """A frozen layer with a trained low-rank update."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.a = nn.Linear(8, 2, bias=False)
        self.b = nn.Linear(2, 8, bias=False)

    def forward(self, x):
        return self.frozen(x) + 0.5 * self.b(self.a(x))


class Partial(nn.Module):
    """A parameter that no output uses, and one that is only detached."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(6, 3)
        self.unused = nn.Parameter(torch.randn(50, 50))
        self.cut = nn.Linear(6, 3)

    def forward(self, x):
        return self.l(x) * self.cut(x).detach()
