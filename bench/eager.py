"""The eager reference SEGNN: e3nn's own modules and the original structure, parameter names as in ace_fast.models.

Edge tensors are materialised and concatenated, gate, bias, rescaling, gamma and residual are passes of their own, and
messages are summed by index_add: what a user of the original code runs.
"""

from math import sqrt

import torch
from e3nn import o3
from e3nn.nn import BatchNorm, Gate
from torch import Tensor, nn


class EagerTensorProduct(nn.Module):
    """Product, rescaling and bias; see ace_fast.nn.O3TensorProduct."""

    def __init__(self, irreps_in1: o3.Irreps, irreps_out: o3.Irreps, irreps_in2: o3.Irreps | None = None):
        super().__init__()
        self.irreps_out = irreps_out
        irreps_in2 = o3.Irreps("1x0e") if irreps_in2 is None else irreps_in2
        self.tp = o3.FullyConnectedTensorProduct(irreps_in1, irreps_in2, irreps_out)
        fan_in = [0] * len(irreps_out)
        for ins in self.tp.instructions:
            fan_in[ins.i_out] += ins.path_shape[0] * ins.path_shape[1]
        scale, slots, bounds = torch.ones(irreps_out.dim), [], []
        for (mul, ir), where, n in zip(irreps_out, irreps_out.slices(), fan_in, strict=True):
            scale[where] = sqrt(n)
            if ir == o3.Irrep("0e"):
                slots += range(where.start, where.stop)
                bounds += [1 / sqrt(n)] * mul
        self.register_buffer("scale", scale, persistent=False)  # [dim_out]
        self.register_buffer("bias_index", torch.tensor(slots, dtype=torch.int64), persistent=False)
        with torch.no_grad():
            for ins, block in zip(self.tp.instructions, self.tp.weight_views(), strict=True):
                block.uniform_(-1 / sqrt(fan_in[ins.i_out]), 1 / sqrt(fan_in[ins.i_out]))
        bias = (2 * torch.rand(len(slots)) - 1) * torch.tensor(bounds)
        self.register_parameter("biases", nn.Parameter(bias) if slots else None)

    def product(self, x: Tensor, attr: Tensor | None) -> Tensor:
        out = self.tp(x, torch.ones_like(x[:, :1]) if attr is None else attr)
        out = out * self.scale
        if self.biases is not None:
            out[:, self.bias_index] += self.biases
        return out

    def forward(self, x: Tensor, attr: Tensor | None = None) -> Tensor:
        return self.product(x, attr)


class EagerSwishGate(EagerTensorProduct):
    """The same followed by e3nn's Gate."""

    def __init__(self, irreps_in1: o3.Irreps, irreps_out: o3.Irreps, irreps_in2: o3.Irreps | None = None):
        scalars, gated = irreps_out[:1], irreps_out[1:]
        gates = o3.Irreps([(gated.num_irreps, "0e")])
        super().__init__(irreps_in1, (scalars + gates + gated).simplify(), irreps_in2)
        silu = nn.SiLU()
        self.gate = Gate(scalars, [silu], gates, [torch.sigmoid], gated) if gated.num_irreps else silu

    def forward(self, x: Tensor, attr: Tensor | None = None) -> Tensor:
        return self.gate(self.product(x, attr))


def _sum_by(x: Tensor, index: Tensor, rows: int) -> Tensor:
    return x.new_zeros(rows, *x.shape[1:]).index_add_(0, index, x)


def _mean_by(x: Tensor, index: Tensor, rows: int) -> Tensor:
    count = _sum_by(torch.ones_like(x[:, :1]), index, rows).clamp(min=1)
    return _sum_by(x, index, rows) / count


class EagerInstanceNorm(nn.Module):
    """Each irrep divided by its norm over the graph's nodes, scalars centred; slice by slice."""

    def __init__(self, irreps: o3.Irreps, eps: float = 1e-5):
        super().__init__()
        self.irreps, self.eps = irreps, eps
        self.weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(irreps.count("0e")))

    def forward(self, x: Tensor, batch: Tensor) -> Tensor:
        graphs = int(batch.max()) + 1
        out, weight, bias = [], 0, 0
        for where, (mul, ir) in zip(self.irreps.slices(), self.irreps, strict=True):
            field = x[:, where].reshape(x.shape[0], mul, ir.dim)
            if ir.l == 0:
                field = field - _mean_by(field.flatten(1), batch, graphs)[batch][:, :, None]
            norm = _mean_by(field.pow(2).mean(2), batch, graphs)
            norm = (norm + self.eps).pow(-0.5) * self.weight[weight:weight + mul]
            field = field * norm[batch][:, :, None]
            if ir == o3.Irrep("0e"):
                field = field + self.bias[bias:bias + mul, None]
                bias += mul
            out.append(field.flatten(1))
            weight += mul
        return torch.cat(out, 1)


class EagerSEGNNLayer(nn.Module):
    """One message passing layer; see ace_fast.models.SEGNNLayer."""

    def __init__(self, hidden: o3.Irreps, edge_attr: o3.Irreps, node_attr: o3.Irreps, norm: str | None,
                 additional: o3.Irreps, relaxed: bool):
        super().__init__()
        self.message_layer_1 = EagerSwishGate((2 * hidden + additional).simplify(), hidden, edge_attr)
        self.message_layer_2 = EagerSwishGate(hidden, hidden, edge_attr)
        self.update_layer_1 = EagerSwishGate((2 * hidden).simplify(), hidden, node_attr)
        self.update_layer_2 = EagerTensorProduct(hidden, hidden, node_attr)
        d = hidden.dim
        if relaxed:
            self.lin_noneq1, self.lin_noneq2 = (
                nn.Sequential(nn.Linear(w, 2 * d), nn.GELU(), nn.Linear(2 * d, d), nn.GELU(), nn.Linear(d, d))
                for w in (2 * d, d)
            )
            self.gammas = nn.ParameterList([nn.Parameter(torch.tensor(1.0)) for _ in range(2)])
        self.disable_equivariance = relaxed
        self.norm = norm
        self.feature_norm = self.message_norm = None
        if norm == "batch":
            self.feature_norm, self.message_norm = BatchNorm(hidden), BatchNorm(hidden)
        elif norm == "instance":
            self.feature_norm = EagerInstanceNorm(hidden)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, node_attr: Tensor, batch: Tensor,
                additional: Tensor | None) -> Tensor:
        source, target = edge_index
        parts = [x[target], x[source]] if additional is None else [x[target], x[source], additional]
        message = self.message_layer_1(torch.cat(parts, -1), edge_attr)
        message = self.message_layer_2(message, edge_attr)
        if self.message_norm is not None:
            message = self.message_norm(message)
        both = torch.cat([x, _sum_by(message, target, x.shape[0])], -1)
        update = self.update_layer_1(both, node_attr)
        if self.disable_equivariance:
            update = update + self.gammas[0] * self.lin_noneq1(both)
            update = self.update_layer_2(update, node_attr) + self.gammas[1] * self.lin_noneq2(update)
        else:
            update = self.update_layer_2(update, node_attr)
        x = x + update
        if self.norm == "batch":
            return self.feature_norm(x)
        return self.feature_norm(x, batch) if self.norm == "instance" else x


class EagerSEGNN(nn.Module):
    """The reference model: same arguments, graph object, parameter names and numbers as ace_fast.models.SEGNN."""

    def __init__(self, input_irreps, hidden_irreps, output_irreps, edge_attr_irreps, node_attr_irreps, num_layers,
                 norm=None, pool="avg", task="graph", additional_message_irreps=None, *, relaxed=False):
        super().__init__()
        inputs, hidden, output = (o3.Irreps(i) for i in (input_irreps, hidden_irreps, output_irreps))
        edge_attr, node_attr = o3.Irreps(edge_attr_irreps), o3.Irreps(node_attr_irreps)
        additional = o3.Irreps(additional_message_irreps or "")
        self.task, self.pool, self.relaxed = task, pool, relaxed
        norm = None if norm == "none" else norm
        self.embedding_layer = EagerTensorProduct(inputs, hidden, node_attr)
        self.layers = nn.ModuleList(
            EagerSEGNNLayer(hidden, edge_attr, node_attr, norm, additional, relaxed) for _ in range(num_layers)
        )
        self.pre_pool1 = EagerSwishGate(hidden, hidden, node_attr)
        pooled = output if task == "node" else (output * hidden.num_irreps).simplify().sort().irreps
        self.pre_pool2 = EagerTensorProduct(hidden, pooled, node_attr)
        if task == "graph":
            self.post_pool1 = EagerSwishGate(pooled, pooled)
            self.post_pool2 = EagerTensorProduct(pooled, output)

    def get_gammas(self) -> list[nn.Parameter]:
        return [gamma for layer in self.layers for gamma in layer.gammas] if self.relaxed else []

    def set_equivariance(self, disable_equivariance: bool) -> None:
        for layer in self.layers:
            layer.disable_equivariance = disable_equivariance

    def forward(self, graph) -> Tensor:
        additional = getattr(graph, "additional_message_features", None)
        node_attr = graph.node_attr.clone()
        node_attr[:, 0] = 1.0
        x = self.embedding_layer(graph.x, node_attr)
        for layer in self.layers:
            x = layer(x, graph.edge_index, graph.edge_attr, node_attr, graph.batch, additional)
        x = self.pre_pool2(self.pre_pool1(x, node_attr), node_attr)
        if self.task == "graph":
            pool = _mean_by if self.pool == "avg" else _sum_by
            x = self.post_pool2(self.post_pool1(pool(x, graph.batch, int(graph.batch.max()) + 1)))
        return x
