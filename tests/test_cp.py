"""Factors of Clebsch-Gordan tensors: exact where they say so, errors that they state, kept on disk; layers on them."""

import copy
import pickle
import warnings

import pytest
import torch
from dropin import assert_takes_bfloat16
from e3nn import o3

from ace_fast.nn import TDNTensorProduct, TensorProduct, cp, equivariance_error
from ace_fast.nn.fields import Fields
from ace_fast.nn.tdn import rank_to
from ace_fast.train import checkpoint

TWO = "1x0e+1x1e+1x2e"


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


@pytest.fixture(autouse=True, scope="module")
def _cache(own_cache):
    """Fits are kept in a folder of the module's own."""


def random_turn(irreps, generator):
    angles = torch.rand(3, generator=generator) * torch.tensor([6.3, 3.1, 6.3])
    return irreps.D_from_angles(*angles).T


@pytest.mark.parametrize("lmax, rank", [(0, 1), (1, 8), (2, 30)])
def test_enough_rank_is_exact(lmax, rank):
    found = cp.fit(lmax, rank=rank)
    assert found.rank == rank and found.error < 1e-12 and found.equivariance_error < 1e-12 and not found.exact
    irreps = o3.Irreps([(1, (n, 1)) for n in range(lmax + 1)])
    instructions = [(i, j, k, "uuu", False) for i in range(lmax + 1) for j in range(lmax + 1) for k in range(lmax + 1)
                    if abs(i - j) <= k <= i + j]
    exact = TensorProduct(irreps, irreps, irreps, instructions)  # e3nn's normalisation is that of the target
    x, y = torch.randn(2, 6, irreps.dim)
    A, B, C = found.factors
    torch.testing.assert_close(((x @ B.T) * (y @ C.T)) @ A.T, exact(x, y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("irreps", [(3,), (TWO,), ("0e+1o+2e+3o", "0e+1o+2e", "2e+1o"), ("1o", "1o", "1e"),
                                    ("0e+1o", "0o+1e", "0o+1e+2o")])
def test_factors_from_grids_are_exactly_equivariant_and_have_every_path(irreps):
    found = cp.fit(*irreps, rank="exact")
    assert found.exact and found.error == 0 and found.equivariance_error < 1e-13
    assert found.rank <= found.factors.B.shape[1] * found.factors.C.shape[1]
    fields, made = cp.fields_of("", *irreps), found.factors.tensor()
    for at, path in cp.symbols(fields):
        strength = (made[at] * path).sum()
        assert abs(strength) > 0.05 and (made[at] - strength * path).abs().max() < 1e-12
    torch.testing.assert_close(made.square().sum((0, 1)), torch.ones(fields[2].width))


def test_the_stated_error_is_that_of_random_rotations():
    found = cp.fit(1, rank=6)
    assert 0.01 < found.equivariance_error < 1
    A, B, C = found.factors
    irreps, generator = o3.Irreps("0e+1e"), torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 1000, 4)
    z, squares = ((x @ B.T) * (y @ C.T)) @ A.T, []
    for _ in range(100):
        turn = random_turn(irreps, generator)
        other = ((x @ turn @ B.T) * (y @ turn @ C.T)) @ A.T
        squares.append((other - z @ turn).square().sum() / z.square().sum())
    assert abs(torch.stack(squares).mean().sqrt() / found.equivariance_error - 1) < 0.1
    wanted = cp.target(cp.fields_of("", 1))
    assert found.error == pytest.approx(float((found.factors.tensor() - wanted).norm() / wanted.norm()))


def test_alternating_least_squares_alone_improves(monkeypatch):
    monkeypatch.setattr(cp, "_SMALL", 0)
    monkeypatch.setattr(cp, "_SWEEPS", {False: 60})
    wanted = cp.target(cp.fields_of("", "0e+1o+2e"))
    made = cp._solve(wanted, 24, 0).tensor()
    assert 1e-6 < (made - wanted).norm() / wanted.norm() < 0.2


def test_fits_are_the_same_for_a_seed_and_kept(tmp_path, monkeypatch):
    first = cp.fit(1, rank=5, seed=3, cache=tmp_path).factors
    (path,) = tmp_path.glob("cp-*.json")
    assert not torch.equal(first.A, cp.fit(1, rank=5, seed=4, cache=tmp_path).factors.A)
    cp._fitted.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(first, cp.fit(1, rank=5, seed=3, cache=tmp_path).factors, strict=True))
    damaged = next(tmp_path.glob(f"{path.stem}-*-A.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-8])
    cp._fitted.cache_clear()
    with pytest.warns(UserWarning, match="cp.fit: .* factors are fitted anew and it is replaced"):
        again = cp.fit(1, rank=5, seed=3, cache=tmp_path).factors
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    monkeypatch.setattr(cp, "_solve", None)  # the replaced file serves
    cp._fitted.cache_clear()
    assert torch.equal(first.B, cp.fit(1, rank=5, seed=3, cache=tmp_path).factors.B)


def test_a_fit_is_the_callers_own():
    first = cp.fit(1, rank=4).factors
    kept = first.A.clone()
    first.A.zero_()
    assert torch.equal(cp.fit(1, rank=4).factors.A, kept) and kept.abs().max() > 0


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cp.fit: factors could not be saved .* pass cache=, or set ACE_FAST_DATA"):
        assert cp.fit(1, rank=3, cache=tmp_path / "file" / "folder").rank == 3


@pytest.mark.parametrize("args, rank, message", [
    ((1,), 17, "rank must be an integer from 1 to 16, got 17; with 16 every map is exact; 'exact' needs no fit"),
    ((1,), 0, "rank must be an integer from 1 to 16, got 0"),
    ((1,), True, "rank must be an integer from 1 to 16, got True"),
    ((1,), "full", "rank must be .* got 'full'; .* 'exact' needs no fit"),
    ((-1,), 4, "irreps_in1 must be an integer of at least 0, got -1"),
    (("1o", "1o", "1o"), 4, "irreps_out must be reachable from 1x1o x 1x1o, got 1x1o"),
    (("1o+1e", "1o", "1o"), 4, r"irreps_in1 must hold each degree once, got 1x1o\+1x1e; fit true and pseudo"),
    (("", "1o", "1o"), 4, "irreps_in1 must hold an irrep or more, got none"),
])
def test_errors(args, rank, message):
    with pytest.raises(ValueError, match=f"cp.fit: .*{message}"):
        cp.fit(*args, rank=rank)


def test_a_seed_is_an_integer():
    with pytest.raises(ValueError, match="cp.fit: seed must be an integer of at least 0, got 'a'"):
        cp.fit(1, rank=4, seed="a")


def test_exact_factors_need_a_path():
    with pytest.raises(ValueError, match="cp.exact: irreps_out must be reachable from 1x1o x 1x1o, got 1x1o"):
        cp.exact("1o", "1o", "1o")


# ---- layers

LAYERS = {"uuu": ("3x0e+3x1e+3x2e", "3x2e+3x0e+3x1e", "3x1e+3x2e"), "one": ("3x0e+3x2e", "1x1e+1x0e", "3x1e+3x2e"),
          "uvu": ("3x0e+3x1e+3x2e", "2x0e+2x1e", "3x0e+3x1e+3x2e")}


QUIET = pytest.mark.filterwarnings("ignore:TDNTensorProduct. rank")


@QUIET
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("case", LAYERS)
def test_layers_are_the_formula(case, trainable):
    tdn = TDNTensorProduct(*LAYERS[case], rank="exact", trainable=trainable)
    one, two, out = (irreps for irreps in (tdn.irreps_in1, tdn.irreps_in2, tdn.irreps_out))
    x, y = torch.randn(4, one.dim), torch.randn(4, two.dim)
    A, B, C = tdn.fit.factors
    f, g = (torch.cat([part.unflatten(1, (mul, -1)) for part, (mul, _) in
                       zip(v.split([i.dim for i in irreps], 1), irreps, strict=True)], 2)
            for v, irreps in ((x, one), (y, two)))
    g, weight = g @ C.T, tdn.weight
    g = torch.einsum("uv,zvr->zur", weight.view(3, 2) * 2**-0.5, g) if case == "uvu" else g * weight[:, None]
    z = ((f @ B.T) * g) @ A.T
    want = torch.cat([part.flatten(1) for part in z.split([ir.dim for _, ir in out], 2)], 1)
    torch.testing.assert_close(tdn(x, y), want, rtol=1e-12, atol=1e-12)
    turn = random_turn(o3.Irreps(one), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    turned = tdn(x @ turn, y @ random_turn(two, generator))
    back = random_turn(out, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned, want @ back, rtol=1e-11, atol=1e-11)
    tdn(x, y).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in tdn.parameters())
    assert len(list(tdn.parameters())) == 1 + 3 * trainable


@QUIET
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("case", ["uuu", "uvu"])
def test_layers_compile_to_one_graph(case, trainable):
    tdn = TDNTensorProduct(*LAYERS[case], rank="exact", trainable=trainable)
    inputs = [torch.randn(4, irreps.dim, requires_grad=True) for irreps in (tdn.irreps_in1, tdn.irreps_in2)]
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # within torch
        whole = torch.compile(tdn, backend="aot_eager", fullgraph=True)
        found = whole(*inputs)
    want, wanted = tdn(*inputs), [*inputs, *tdn.parameters()]
    assert len(wanted) == 3 + 3 * trainable
    torch.testing.assert_close(found, want, rtol=1e-13, atol=1e-13)
    slopes = [torch.autograd.grad(z.square().sum(), wanted) for z in (found, want)]
    torch.testing.assert_close(*slopes, rtol=1e-13, atol=1e-13)


@QUIET
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", ["uuu", "uvu"])
def test_trainable_factors_stay_where_they_are(case, grad):
    """On the meta device nothing can be copied to the host; nothing waits for a GPU there either."""
    with torch.device("meta"):
        tdn = TDNTensorProduct(*LAYERS[case], rank="exact", trainable=True)
    assert {p.device.type for p in tdn.parameters()} == {"meta"} and len(list(tdn.parameters())) == 4
    x, y = (torch.randn(4, irreps.dim, device="meta") for irreps in (tdn.irreps_in1, tdn.irreps_in2))
    with torch.set_grad_enabled(grad):
        assert tdn(x, y).shape == (4, tdn.irreps_out.dim)


@QUIET
@pytest.mark.parametrize("case", ["uuu", "one"])
def test_factors_that_are_trained_and_frozen_give_the_same(case):
    trained, frozen = (TDNTensorProduct(*LAYERS[case], rank="exact", trainable=train) for train in (True, False))
    frozen.load_state_dict({"weight": trained.weight})
    x, y = (torch.randn(4, irreps.dim) for irreps in (frozen.irreps_in1, frozen.irreps_in2))
    want = frozen(x, y)
    torch.testing.assert_close(trained(x, y), want, rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(trained(x, y), want, rtol=1e-13, atol=1e-13)
        trained.A.mul_(2)
        torch.testing.assert_close(trained(x, y), 2 * want, rtol=1e-13, atol=1e-13)
    for factor in (trained.A, trained.B, trained.C):
        factor.requires_grad_(False)
    z = trained(x, y)
    torch.testing.assert_close(z, 2 * want, rtol=1e-13, atol=1e-13)
    assert torch.autograd.grad(z.sum(), trained.weight)[0].abs().max() > 0


@QUIET
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("case", LAYERS)
def test_layers_take_bfloat16_and_autocast(case, trainable):
    tdn = TDNTensorProduct(*LAYERS[case], rank="exact", trainable=trainable)
    x, y = (torch.randn(4, irreps.dim) for irreps in (tdn.irreps_in1, tdn.irreps_in2))
    assert_takes_bfloat16(tdn, [x, y], exact=case != "uvu")  # where y's channels are mixed by a linear map of torch
    with torch.autocast("cpu", torch.bfloat16):
        assert tdn(x.bfloat16(), y.float()).dtype == torch.float32
    tdn.bfloat16().backend = "auto"  # which on a CPU does not take it, whether gradients are wanted or not
    for grad in (False, True):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="must be float32 or float64 on the CPU"):
            tdn(x.bfloat16(), y.bfloat16())


def fitted(trainable: bool = False, irreps: str = "2x0e+2x1e", **options):
    return torch.nn.Sequential(TDNTensorProduct(irreps, irreps, irreps, trainable=trainable, **options))


@QUIET
@pytest.mark.parametrize("theirs, mine, message", [
    ({"rank": 7}, {"rank": 7, "seed": 1}, "the map of rank 7, seed 1, got that of rank 7, seed 0, .* away; build"),
    ({"rank": 7}, {"rank": "exact"}, "the map of rank exact, seed 0, got that of rank 7, seed 0, .* away"),
    ({"rank": "exact"}, {"rank": 7, "trainable": True}, "the map of rank 7, seed 0, got that of rank exact, seed 0"),
    ({"rank": 7, "trainable": True}, {"rank": 7}, "trainable False, got True; build it with trainable=True"),
    ({"rank": 7}, {"rank": 7, "irreps": "2x1e+2x0e"}, r"degrees \['1e\+0e', .*, got \['0e\+1e', .*; build the"),
    ({"rank": 7}, {"rank": 7, "irreps": "2x0e+2x1o"}, r"degrees \['0e\+1o', .*, got \['0e\+1e', .*; build the"),
])
def test_weights_of_another_map_are_refused(theirs, mine, message):
    state = fitted(**theirs).state_dict()
    for strict in (True, False):
        with pytest.raises(ValueError, match=f"TDNTensorProduct: the checkpoint must be of {message}"):
            fitted(**mine).load_state_dict(state, strict=strict)


@QUIET
def test_weights_say_the_format_of_what_they_say():
    state = fitted(rank=7).state_dict()
    text = bytes(state["0._extra_state"].tolist()).replace(b'"format": 1', b'"format": 9')
    state["0._extra_state"] = torch.tensor(list(text), dtype=torch.uint8)
    with pytest.raises(ValueError, match="the checkpoint must be of format 1, got 9; update ace_fast"):
        fitted(rank=7).load_state_dict(state)


@QUIET
@pytest.mark.parametrize("trainable", [False, True])
def test_weights_of_the_same_map_are_loaded(trainable, tmp_path):
    layer = fitted(trainable, rank=7)
    x, y = torch.randn(2, 3, 8)
    want, state = layer[0](x, y), layer.state_dict()
    torch.save(state, tmp_path / "weights.pt")
    checkpoint.save_weights(tmp_path / "weights.safetensors", layer, {})
    again = torch.load(tmp_path / "weights.pt", weights_only=True)
    older = {name: value for name, value in state.items() if not name.endswith("_extra_state")}
    cast = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    for kept in (state, again, older, cast):
        other = fitted(trainable, rank=7, seed=int(trainable))  # what was trained is in the checkpoint
        other.load_state_dict(kept, strict=True)
        assert torch.equal(other[0](x, y), want)
    other = fitted(trainable, rank=7)
    checkpoint.load_weights(tmp_path / "weights.safetensors", other)
    assert torch.equal(other[0](x, y), want)


@QUIET
def test_factors_of_one_map_are_one_map():
    """A fit that is exact gives the map itself, from any seed and at any rank."""
    layer, other = fitted(rank=8), fitted(rank=9, seed=2)
    other.load_state_dict(layer.state_dict())
    x, y = torch.randn(2, 3, 8)
    torch.testing.assert_close(other[0](x, y), layer[0](x, y), rtol=1e-9, atol=1e-9)


@QUIET
def test_layers_take_weights_of_every_row_layouts_and_no_rows():
    tdn = TDNTensorProduct(*LAYERS["uvu"], rank="exact", internal_weights=False, layout="ir_mul")
    x, y, weight = torch.randn(4, 27), torch.randn(4, 8), torch.randn(4, 6)
    each = torch.cat([tdn(x[n:n + 1], y[n:n + 1], weight[n]) for n in range(4)])
    torch.testing.assert_close(tdn(x, y, weight), each, rtol=1e-12, atol=1e-12)
    assert tdn(x[:0], y[:0], weight[:0]).shape == (0, 27)
    assert torch.autograd.gradgradcheck(tdn, [t[:2].requires_grad_() for t in (x, y, weight)], fast_mode=True)
    with pytest.raises(ValueError, match=r"weight must be \[6\] or \[..., 6\] where .* is False, got None"):
        tdn(x, y)
    with pytest.raises(ValueError, match="weight must be None, got"):
        TDNTensorProduct(*LAYERS["one"], rank="exact")(torch.zeros(1, 18), torch.zeros(1, 4), weight)


@QUIET
def test_layers_are_copied():
    tdn = TDNTensorProduct(*LAYERS["uuu"], rank="exact")
    x, y = torch.randn(2, 3, 27)
    for twin in (copy.deepcopy(tdn), pickle.loads(pickle.dumps(tdn))):
        assert torch.equal(twin(x, y), tdn(x, y))
    with torch.device("meta"):
        later = TDNTensorProduct(*LAYERS["uuu"], rank="exact")
    later = later.to_empty(device="cpu")
    later.load_state_dict(tdn.state_dict())
    assert torch.equal(later(x, y), tdn(x, y))


MEASURED = [  # L, rank (0: exact), channels, those of y, time over that of the exact product
    (1, 7, 64, 64, 1.14), (2, 28, 16, 16, 1.44), (2, 30, 16, 16, 1.51), (2, 0, 16, 16, 2.28), (3, 63, 16, 16, 0.98),
    (3, 63, 64, 64, 0.78), (3, 96, 16, 16, 1.46), (3, 0, 16, 16, 1.66), (4, 112, 16, 16, 0.69), (4, 0, 16, 16, 1.12),
    (5, 175, 16, 16, 0.45), (5, 0, 16, 16, 0.66), (6, 252, 16, 16, 0.38), (6, 0, 16, 16, 0.51),
    (2, 28, 16, 1, 2.75), (2, 0, 16, 1, 4.73), (3, 63, 16, 1, 1.91), (3, 0, 16, 1, 3.27), (4, 0, 16, 1, 1.92),
    (2, 0, 16, 4, 1.04), (2, 28, 16, 4, 0.75), (2, 0, 16, 8, 0.62), (3, 0, 16, 4, 0.40)]


def of_degrees(lmax: int, *channels: int) -> list[str]:
    return ["+".join(f"{c}x{n}e" for n in range(lmax + 1)) for c in channels]


@pytest.mark.parametrize("lmax, rank, channels, of_y, measured", MEASURED)
def test_the_rank_that_is_faster_is_the_measured_one(lmax, rank, channels, of_y, measured):
    fields = [Fields("", "", irreps) for irreps in of_degrees(lmax, channels, of_y, channels)]
    rank = rank or {2: 54, 3: 114, 4: 186, 5: 258, 6: 366}[lmax]
    assert (rank > rank_to(fields)) == (measured > 1)


@pytest.mark.parametrize("irreps, rank, most", [
    (of_degrees(1, 2, 2, 2), 7, 4), (of_degrees(2, 2, 2, 2), "exact", 22), (of_degrees(3, 2, 2, 2), "exact", 71),
    (of_degrees(4, 2, 2, 2), "exact", 174), (of_degrees(1, 8, 1, 8), "exact", 2),
    (("2x0e+2x3e", "1x0e", "2x0e+2x3e"), "exact", 0), (of_degrees(5, 2, 2, 2), "exact", None),
    (of_degrees(1, 2, 2, 2), 4, None), (of_degrees(2, 8, 8, 8), 22, None), (of_degrees(2, 16, 8, 16), "exact", None)])
def test_a_rank_at_which_the_exact_product_is_faster_has_a_warning(irreps, rank, most):
    """That of the exact rank is 54, 114, 186 and 258 at L = 2 to 5."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        layer = TDNTensorProduct(*irreps, rank)
    text = f"rank {layer.fit.rank} is above {most}, to which factors take less time than the exact ace_fast.nn.Tensor"
    assert [text in str(w.message) and w.filename == __file__ for w in found] == [True] * (most is not None)


@QUIET
def test_the_error_of_trained_factors_is_measured():
    tdn = TDNTensorProduct(*LAYERS["uuu"], rank="exact", trainable=True)
    assert equivariance_error(tdn) < 1e-12 and equivariance_error(tdn.float()) > 1e-12
    with torch.no_grad():
        tdn.A += 0.1 * torch.randn_like(tdn.A)
    assert equivariance_error(tdn) > 1e-2 > tdn.fit.equivariance_error
    assert equivariance_error(tdn.double(), "cpu", torch.float64) == pytest.approx(equivariance_error(tdn))


@pytest.mark.parametrize("irreps, message", [
    (("2x0e+2x1e+2x1o", "1x0e", "2x0e"), "must hold each degree once"),
    (("2x0e+2x2e", "1x0e", "1x0e"), "irreps_out must have the 2 channels of irreps_in1, got 1x0e"),
    (("2x0e+3x2e", "1x0e", "2x0e"), "irreps_in1 must have one multiplicity"),
])
def test_errors_of_layers(irreps, message):
    with pytest.raises(ValueError, match=message):
        TDNTensorProduct(*irreps, rank=2)
