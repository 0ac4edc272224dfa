"""The eager reference VN-DGCNN: plain PyTorch with the original structure, parameter names as in ace_fast.models.

Neighbours by an N x N matrix and topk, edge features gathered and concatenated, every map, norm and nonlinearity a pass
over all edges, the unconstrained maps on flattened copies: what a user of the original code runs. Classes and arguments
have the names of vnn and ACE, so that `convert` takes them for theirs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6


def nearest(x: Tensor, k: int) -> Tensor:
    """x [B, F, N] -> the k nearest of every point [B, N, k], by all distances at once."""
    inner = x.transpose(2, 1) @ x  # [B, N, N]
    square = x.square().sum(1, keepdim=True)
    return (2 * inner - square - square.transpose(2, 1)).topk(k, -1)[1]


def _gathered(x: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, C, 3, N] -> features of the neighbours and of the centres, [B, N, K, C, 3] both."""
    b, c, _, n = x.shape
    k = neighbours.shape[2]
    rows = x.reshape(b, 3 * c, n).transpose(2, 1).contiguous()
    index = (neighbours + torch.arange(b, device=x.device)[:, None, None] * n).reshape(-1)
    other = rows.reshape(b * n, 3 * c)[index].reshape(b, n, k, c, 3)
    return other, rows.reshape(b, n, 1, c, 3).repeat(1, 1, k, 1, 1)


def get_graph_feature(x: Tensor, k: int, neighbours: Tensor | None = None) -> Tensor:
    """x [B, C, 3, N] -> [x_j - x_i ; x_i], [B, 2C, 3, N, k]."""
    if neighbours is None:
        neighbours = nearest(x.reshape(x.shape[0], -1, x.shape[3]), k)
    other, centre = _gathered(x, neighbours)
    return torch.cat([other - centre, centre], 3).permute(0, 3, 4, 1, 2).contiguous()


def get_graph_feature_cross(x: Tensor, k: int) -> Tensor:
    """x [B, 1, 3, N] -> [x_j - x_i ; x_i ; x_j x x_i], [B, 3, 3, N, k]."""
    other, centre = _gathered(x, nearest(x.squeeze(1), k))
    cross = torch.linalg.cross(other, centre)
    return torch.cat([other - centre, centre, cross], 3).permute(0, 3, 4, 1, 2).contiguous()


def _map(linear: nn.Linear, x: Tensor) -> Tensor:
    return linear(x.transpose(1, -1)).transpose(1, -1)


def _leaky(p: Tensor, d: Tensor, slope: float) -> Tensor:
    dot = (p * d).sum(2, keepdim=True)
    mask = (dot >= 0).to(p.dtype)
    square = (d * d).sum(2, keepdim=True)
    return slope * p + (1 - slope) * (mask * p + (1 - mask) * (p - (dot / (square + EPS)) * d))


class VNLinear(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.map_to_feat = nn.Linear(in_channels, out_channels, bias=False)

    def forward(self, x, disable_equivariance=False):
        return _map(self.map_to_feat, x)


class VNLeakyReLU(nn.Module):
    def __init__(self, in_channels, share_nonlinearity=False, negative_slope=0.2):
        super().__init__()
        self.map_to_dir = nn.Linear(in_channels, 1 if share_nonlinearity else in_channels, bias=False)
        self.negative_slope = negative_slope

    def forward(self, x):
        return _leaky(x, _map(self.map_to_dir, x), self.negative_slope)


class VNBatchNorm(nn.Module):
    def __init__(self, num_features, dim):
        super().__init__()
        self.dim = dim
        self.bn = (nn.BatchNorm2d if dim == 5 else nn.BatchNorm1d)(num_features)

    def forward(self, x):
        norm = torch.norm(x, dim=2) + EPS
        return x / norm.unsqueeze(2) * self.bn(norm).unsqueeze(2)


class VNLinearLeakyReLU(nn.Module):
    """`legacy_view` False mends the order of the unconstrained map of 4-d features, as ace_fast's own does."""

    def __init__(self, in_channels, out_channels, dim=5, share_nonlinearity=False, negative_slope=0.2, *,
                 relaxed=False, relaxation_init=1.0, legacy_view=True):
        super().__init__()
        self.dim, self.negative_slope, self.legacy_view = dim, negative_slope, legacy_view
        directions = 1 if share_nonlinearity else out_channels
        self.map_to_feat = nn.Linear(in_channels, out_channels, bias=False)
        self.batchnorm = VNBatchNorm(out_channels, dim)
        if relaxed:
            self.map_to_feat_nonequiv = nn.Linear(3 * in_channels, 3 * out_channels)
        self.map_to_dir = nn.Linear(in_channels, directions, bias=False)
        if relaxed:
            self.map_to_dir_nonequiv = nn.Linear(3 * in_channels, 3 * directions)
            self.gammas = nn.ParameterList([nn.Parameter(torch.tensor(float(relaxation_init))) for _ in range(2)])

    def _skip(self, y, x, dense, gamma):
        """y + gamma dense(x), the dense map on a flattened copy of x."""
        if x.dim() == 5:
            b, _, _, n, k = x.shape
            free = dense(x.permute(0, 3, 4, 1, 2).contiguous().view(b, n * k, -1))
            return y + gamma * free.view(b, n, k, y.shape[1], 3).permute(0, 3, 4, 1, 2)
        if x.dim() == 3:
            return y + gamma * dense(x.flatten(1)).view(y.shape)
        b, n = x.shape[0], x.shape[3]
        free = dense(x.permute(0, 3, 1, 2).contiguous().view(b, n, -1))
        if self.legacy_view:
            return y + gamma * free.view(b, y.shape[1], 3, n)
        return y + gamma * free.view(b, n, y.shape[1], 3).permute(0, 2, 3, 1)

    def forward(self, x, disable_equivariance=False):
        p, d = _map(self.map_to_feat, x), _map(self.map_to_dir, x)
        if disable_equivariance:
            p = self._skip(p, x, self.map_to_feat_nonequiv, self.gammas[0])
            d = self._skip(d, x, self.map_to_dir_nonequiv, self.gammas[1])
        return _leaky(self.batchnorm(p), d, self.negative_slope)


class VNMaxPool(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.map_to_dir = nn.Linear(in_channels, in_channels, bias=False)

    def forward(self, x):
        index = (x * _map(self.map_to_dir, x)).sum(2, keepdim=True).max(-1)[1]
        places = torch.meshgrid([torch.arange(j, device=x.device) for j in x.shape[:-1]], indexing="ij")
        return x[(*places, index.expand(x.shape[:-1]))]


def mean_pool(x, dim=-1, keepdim=False):
    return x.mean(dim=dim, keepdim=keepdim)


class VNStdFeature(nn.Module):
    def __init__(self, in_channels, dim=4, normalize_frame=False, share_nonlinearity=False, negative_slope=0.2,
                 **options):
        super().__init__()
        self.dim, self.normalize_frame = dim, normalize_frame
        half, quarter = in_channels // 2, in_channels // 4
        self.vn1 = VNLinearLeakyReLU(in_channels, half, dim, share_nonlinearity, negative_slope, **options)
        self.vn2 = VNLinearLeakyReLU(half, quarter, dim, share_nonlinearity, negative_slope, **options)
        self.vn_lin = nn.Linear(quarter, 2 if normalize_frame else 3, bias=False)

    def forward(self, x, disable_equivariance=False):
        z = self.vn2(self.vn1(x, disable_equivariance), disable_equivariance)
        z = _map(self.vn_lin, z)
        if self.normalize_frame:
            v1, v2 = z[:, 0], z[:, 1]
            u1 = v1 / ((v1 * v1).sum(1, keepdim=True).sqrt() + EPS)
            v2 = v2 - (v2 * u1).sum(1, keepdim=True) * u1
            u2 = v2 / ((v2 * v2).sum(1, keepdim=True).sqrt() + EPS)
            z = torch.stack([u1, u2, torch.linalg.cross(u1, u2, dim=1)], 1)
        z = z.transpose(1, 2)
        rest = "mn"[: x.dim() - 3]
        return torch.einsum(f"bij{rest},bjk{rest}->bik{rest}", x, z), z


class EagerVNDGCNN(nn.Module):
    """The reference model: arguments, parameter names and numbers of ace_fast.models.VNDGCNN."""

    def __init__(self, num_class=40, n_knn=20, pooling="mean", dropout=0.5, *, relaxed=False, relaxation_init=1.0,
                 legacy_view=False):
        super().__init__()
        self.n_knn, self.relaxed, self.disable_equivariance = n_knn, relaxed, relaxed
        options = {"relaxed": relaxed, "relaxation_init": relaxation_init, "legacy_view": legacy_view}
        self.conv1 = VNLinearLeakyReLU(2, 21, **options)
        self.conv2 = VNLinearLeakyReLU(42, 21, **options)
        self.conv3 = VNLinearLeakyReLU(42, 42, **options)
        self.conv4 = VNLinearLeakyReLU(84, 85, **options)
        self.conv5 = VNLinearLeakyReLU(169, 341, dim=4, share_nonlinearity=True, **options)
        self.std_feature = VNStdFeature(682, dim=4, **options)
        self.linear1, self.bn1, self.dp1 = nn.Linear(4092, 512), nn.BatchNorm1d(512), nn.Dropout(dropout)
        self.linear2, self.bn2, self.dp2 = nn.Linear(512, 256), nn.BatchNorm1d(256), nn.Dropout(dropout)
        self.linear3 = nn.Linear(256, num_class)
        widths = (21, 21, 42, 85)
        pools = [VNMaxPool(width) if pooling == "max" else mean_pool for width in widths]
        self.pool1, self.pool2, self.pool3, self.pool4 = pools

    def get_gammas(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if ".gammas." in name]

    def set_equivariance(self, disable_equivariance: bool) -> None:
        self.disable_equivariance = disable_equivariance

    def forward(self, x: Tensor) -> Tensor:
        flag, found = self.disable_equivariance, []
        x = x.unsqueeze(1)
        for conv, pool in ((self.conv1, self.pool1), (self.conv2, self.pool2), (self.conv3, self.pool3),
                           (self.conv4, self.pool4)):
            x = pool(conv(get_graph_feature(x, self.n_knn), flag))
            found.append(x)
        x = self.conv5(torch.cat(found, 1), flag)
        x = torch.cat([x, x.mean(-1, keepdim=True).expand(x.shape)], 1)
        x, _ = self.std_feature(x, flag)
        x = x.reshape(x.shape[0], -1, x.shape[3])
        x = torch.cat([F.adaptive_max_pool1d(x, 1).flatten(1), F.adaptive_avg_pool1d(x, 1).flatten(1)], 1)
        x = F.leaky_relu(self.bn1(self.linear1(x)), negative_slope=0.2)
        x = F.leaky_relu(self.bn2(self.linear2(self.dp1(x))), negative_slope=0.2)
        return self.linear3(self.dp2(x))


def smoothed_loss(logits: Tensor, target: Tensor, smoothing: float = 0.2) -> Tensor:
    """The original's cross entropy: the target has 1 - smoothing, the other classes share the rest."""
    classes = logits.shape[1]
    soft = torch.full_like(logits, smoothing / (classes - 1)).scatter(1, target[:, None], 1 - smoothing)
    return -(soft * F.log_softmax(logits, 1)).sum(1).mean()
