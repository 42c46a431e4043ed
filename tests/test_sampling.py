"""The driver: batch independence, counts, resume, compile, host reads, errors."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wayfield import files
from wayfield.core import grid as G
from wayfield.core.errors import (
    CheckpointError,
    ConditionError,
    DeviceError,
    DTypeError,
    NonFiniteError,
    RangeError,
    ShapeError,
    SingularError,
    UnknownNameError,
    UnsupportedError,
)
from wayfield.core.noise import BrownianNoise, RecordingNoise, ReplayNoise, SeededNoise
from wayfield.core.path import EDM, VP, Straight, Trig
from wayfield.field.batching import Batching
from wayfield.field.binding import Counts, Query
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, COND, Away
from wayfield.guide.terms import Direction
from wayfield.sampling import Checkpoint, sample
from wayfield.solve import (
    DDIM,
    DPM2M,
    DPM2S,
    DPM3M,
    Adaptive,
    Ancestral,
    Churn,
    Euler,
    Heun,
    HeunTime,
    PredictorCorrector,
    UniPC,
)

SOLVERS = [
    DDIM(),
    DDIM(eta=0.5),
    Ancestral(),
    Euler(),
    Heun(),
    HeunTime(),
    DPM2M(),
    DPM2M(eta=1.0),
    DPM3M(),
    DPM2S(),
    UniPC(2),
    UniPC(3),
    Churn(),
    PredictorCorrector(),
]


class Tiny(nn.Module):
    """A small smooth network with labels, weights from a seed."""

    def __init__(self, d=6, width=24):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.a = nn.Parameter(0.4 * torch.randn(width, d + 1, generator=g))
        self.b = nn.Parameter(0.4 * torch.randn(d, width, generator=g))
        self.table = nn.Parameter(torch.randn(4, width, generator=g))

    def forward(self, x, time, cond):
        t = time.expand(len(x)) if time.ndim == 0 else time
        h = torch.cat([x, t[:, None].to(x.dtype)], 1) @ self.a.T
        return torch.tanh(h + self.table[cond["label"]]) @ self.b.T


PATH = VP()
GRID = G.karras(PATH, 8, sigma_min=0.05, sigma_max=20.0)
SCHEMA = Schema({"label": Field(values=4)}, {"label": 3})


def tiny(kind="v", path=PATH):
    return Denoiser(Tiny(), path, kind, time="log_sigma/4", schema=SCHEMA, shape=(6,))


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def draw(samples=10, labels=LABELS, **options):
    options = {"guidance": CFG(2.0), "seed": 5, **options}
    return sample(tiny(), GRID, samples=samples, cond={"label": labels}, **options)


@pytest.mark.parametrize("solver", [*SOLVERS, Adaptive()], ids=str)
def test_sample_k_does_not_depend_on_its_batch(solver):
    whole = draw(solver=solver).x
    for k in (0, 7):
        alone = draw([k], LABELS[k : k + 1], solver=solver).x
        torch.testing.assert_close(alone[0], whole[k], rtol=1e-5, atol=1e-5)
    order = [9, 2, 4]
    torch.testing.assert_close(draw(order, LABELS[order], solver=solver).x, whole[order], rtol=1e-5, atol=1e-5)


def test_seeds_differ_and_repeat():
    assert torch.equal(draw().x, draw().x)
    assert not torch.isclose(draw(seed=6).x, draw().x).any()


@pytest.mark.parametrize("batching", [Batching(), Batching(merge_below=0), Batching(max_rows=10)])
def test_cfg_equals_a_hand_loop_and_its_cost(batching):
    run = draw(batching=batching)
    den, noise = tiny(), SeededNoise(5, 10)
    from wayfield.core.noise import Address

    x = float(GRID.scales.sigma[0]) * noise.draw((6,), Address(-1))
    with torch.no_grad():
        for i in range(8):
            c, u = den(x, GRID.t[i], {"label": LABELS}), den(x, GRID.t[i])
            x0 = u.x0 + 2.0 * (c.x0 - u.x0)
            a, s = (v[i] for v in GRID.scales[:2])
            eps = (x - float(a) * x0) / float(s)
            x = float(GRID.scales.alpha[i + 1]) * x0 + float(GRID.scales.sigma[i + 1]) * eps
    torch.testing.assert_close(run.x, x, rtol=1e-4, atol=1e-5)
    assert run.counts == Counts(8 if batching == Batching() else 16, 160, 0)


class TestCfgScale:
    def test_neutral_is_plain_bit_for_bit_and_costs_one_branch(self):
        plain, neutral = draw(guidance=None), draw(guidance=CFG(1.0))
        assert torch.equal(plain.x, neutral.x)
        assert plain.counts == Counts(8, 80, 0)
        assert neutral.counts == Counts(8, 80, 0)

    def test_zero_is_unconditional(self):
        run = draw(guidance=CFG(0.0))
        assert torch.equal(run.x, sample(tiny(), GRID, samples=10, seed=5).x)
        assert run.counts == Counts(8, 80, 0)

    def test_ho_salimans(self):
        assert CFG.from_ho_salimans(0.5) == CFG(1.5)

    def test_negative_condition(self):
        a = draw(guidance=CFG(2.0, away="negative"), conds={"negative": {"label": 3}}).x
        assert torch.equal(a, draw().x)
        b = draw(guidance=CFG(2.0, away="negative"), conds={"negative": {"label": 0}}).x
        assert float((a - b).abs().max()) > 1e-3

    def test_guiding_in_any_parameterisation_is_the_same(self, path, mixture, randn64):
        """Card, oracle 8."""
        from wayfield.core.predict import KINDS, Kind, convert, solve

        den, x, t = mixture(path, d=3), randn64(4, 3), path.time(torch.tensor(0.3, dtype=torch.float64))
        c, u = den(x, t, {"label": torch.tensor([0, 1, 0, 1])}), den(x, t)
        scales, w = path.scales(t), 2.5
        want = u.x0 + w * (c.x0 - u.x0)
        for kind in KINDS:
            y = [convert(Kind(kind), p, scales) for p in (c, u)]
            got = solve(Kind(kind), y[1] + w * (y[0] - y[1]), x, scales).x0
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("w", [float("nan"), float("inf"), "2"])
    def test_bad_scale(self, w):
        with pytest.raises(RangeError):
            CFG(w)


class Reads(TorchDispatchMode):
    """Counts reads of tensor values by the host."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_no_host_reads_in_the_loop(solver):
    """Whatever set-up and the final check read, twice the steps must not read more often."""

    def reads(n):
        grid = G.karras(PATH, n, sigma_min=0.05, sigma_max=20.0)
        with Reads() as mode:
            seen = []
            sample(
                tiny(),
                grid,
                samples=3,
                cond={"label": 1},
                solver=solver,
                guidance=CFG(2.0),
                callback=lambda info: seen.append(mode.n),
            )
        return seen[-1] - seen[0]

    assert reads(8) == 0


def test_a_deliberate_read_is_counted():
    den = Denoiser(
        Tiny(), PATH, "v", schema=SCHEMA, shape=(6,), call=lambda net, x, t, c: net(x, t, c) * float(x.sum() < 1e9)
    )
    with Reads() as mode:
        seen = []
        sample(den, GRID, cond={"label": 1}, callback=lambda info: seen.append(mode.n))
    assert seen[-1] - seen[0] == 7


class Graphs:
    """A backend that runs eagerly and counts the graphs it was given."""

    def __init__(self):
        self.n = 0

    def __call__(self, graph, inputs):
        self.n += 1
        return graph.forward


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_compiled_equals_eager_with_one_graph_per_plan(solver, monkeypatch):
    import wayfield.sampling.driver as module

    torch._dynamo.reset()
    graphs = Graphs()
    compiled = torch.compile(module._step, fullgraph=True, dynamic=False, backend=graphs)
    monkeypatch.setattr(module, "_compiled", lambda backend: compiled)
    want, got = draw(solver=solver), draw(solver=solver, compile=True)
    torch.testing.assert_close(got.x, want.x, rtol=1e-5, atol=1e-5)
    assert got.counts == want.counts
    plans = {(len(t), d) for t, d in zip(solver.plan(GRID).times, solver.plan(GRID).draws, strict=True)}
    assert graphs.n == len(plans)
    assert torch.equal(draw(solver=solver, compile=True).x, got.x)
    assert graphs.n == len(plans), "a second run must reuse the first one's graphs"


@pytest.mark.slow
def test_inductor_agrees():
    torch._dynamo.reset()
    want, got = draw(solver=DPM2M()), draw(solver=DPM2M(), compile=True)
    torch.testing.assert_close(got.x, want.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_resume_from_the_middle(solver, tmp_path):
    want = draw(solver=solver, record=True)
    place = Checkpoint(str(tmp_path / "run.safetensors"), every=3)

    class Stop(Exception):
        pass

    def stop(info):
        if info.i == 5:
            raise Stop

    with pytest.raises(Stop):
        draw(solver=solver, record=True, checkpoint=place, callback=stop)
    steps = []
    got = draw(solver=solver, record=True, checkpoint=place, callback=lambda info: steps.append(info.i))
    assert steps == [4, 5, 6, 7, 8]
    assert torch.equal(got.x, want.x)
    assert torch.equal(got.trajectory, want.trajectory)
    assert got.counts == want.counts


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    place = Checkpoint(str(tmp_path / "run.safetensors"), every=3)
    draw(checkpoint=place)
    for other in (
        {"seed": 6},
        {"solver": Heun()},
        {"guidance": CFG(3.0)},
        {"labels": LABELS.flip(0)},
        {"record": True},
    ):
        with pytest.raises(CheckpointError, match="another run"):
            draw(checkpoint=place, **other)
    raw = (tmp_path / "run.safetensors").read_bytes()
    (tmp_path / "run.safetensors").write_bytes(raw[:-7])
    with pytest.raises(CheckpointError, match="truncated"):
        draw(checkpoint=place)


def test_trajectory_and_callback():
    infos = []
    run = draw(record=True, callback=infos.append)
    assert run.trajectory.shape == (9, 10, 6)
    assert torch.equal(run.trajectory[-1], run.x)
    assert [i.i for i in infos] == list(range(1, 9))
    assert infos[-1].t == 0.0
    assert infos[-1].counts == run.counts
    assert all(torch.equal(i.x, run.trajectory[i.i]) for i in infos)


def test_noise_modes():
    recorder = RecordingNoise(SeededNoise(5, 10))
    want = draw(solver=Ancestral(), noise=recorder)
    assert torch.equal(want.x, draw(solver=Ancestral()).x)
    assert torch.equal(draw(solver=Ancestral(), noise=ReplayNoise(recorder.draws)).x, want.x)


def test_brownian_noise_is_stable_in_the_number_of_steps(mixture):
    """Doubling the steps moves a sample much less than with independent noise."""
    den, n = mixture(Trig(), d=2), 64

    def run(noise, steps):
        grid = G.uniform(Trig(), steps, start=0.98)
        return sample(den, grid, noise=noise, solver=Ancestral(), dtype=torch.float64).x

    def moved(make):
        return float((run(make(), 100) - run(make(), 200)).square().mean())

    assert moved(lambda: BrownianNoise(0, n)) < 0.25 * moved(lambda: SeededNoise(0, n))


def test_start_in_the_middle_and_inversion(mixture, randn64):
    den, x0 = mixture(VP(), d=2), randn64(5, 2)
    grid = G.karras(VP(), 200, sigma_min=0.01, sigma_max=50.0)
    up = grid.reversed()
    x = VP().noised(x0, up.t[0], torch.zeros_like(x0))
    top = sample(den, up, x=x, samples=5, solver=Heun(), dtype=torch.float64).x
    back = sample(den, G.Grid(VP(), grid.t[:-1]), x=top, samples=5, solver=Heun(), dtype=torch.float64).x
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)
    middle = grid.below(0.4)
    noisy = VP().noised(x0, 0.4, randn64(5, 2, seed=3))
    assert sample(den, middle, x=noisy, samples=5, dtype=torch.float64).counts.calls == middle.steps


def test_float64_and_float32_agree(mixture):
    den = mixture(VP(), d=4)
    runs = [sample(den, GRID, samples=6, solver=DPM2M(), dtype=d).x.double() for d in (torch.float32, torch.float64)]
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-4)


def test_a_model_runs_on_another_path(mixture):
    """The same noise levels on another path give the same samples."""
    den = mixture(VP(), d=4)
    a = sample(den, G.karras(VP(), 12, sigma_min=0.02, sigma_max=60.0), samples=6, dtype=torch.float64).x
    b = sample(den, G.karras(EDM(80.0), 12, sigma_min=0.02, sigma_max=60.0), samples=6, dtype=torch.float64).x
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with pytest.raises(SingularError):
        sample(mixture(EDM(10.0)), G.karras(EDM(80.0), 12))


class Breaks(nn.Module):
    """Answers NaN below a time."""

    def forward(self, x, time, cond):
        return torch.where(time < 0.4, torch.nan, 0.5) * x


def test_nan_is_named_with_its_step():
    grid = G.uniform(Straight(), 10)
    with pytest.raises(NonFiniteError, match=r"step 8 of 10 \(t = 0\.2\)"):
        sample(Denoiser(Breaks(), Straight(), "velocity", shape=(2,)), grid)
    with pytest.raises(NonFiniteError):
        sample(Denoiser(Breaks(), Straight(), "velocity", shape=(2,)), grid, solver=Adaptive(max_steps=50))


def test_tables_kept_from_inference_mode_serve_gradients():
    """A run in inference mode must not leave tensors behind that a later gradient through the levels cannot use."""

    class Slope(Direction):
        def push(self, ask, step, state):
            (pred,) = ask(Query("cond", grad=True))
            with torch.enable_grad():
                energy = pred.x0.square().sum(1)
            return -0.01 * ask.pull(energy), state

    grid = G.karras(PATH, 5, sigma_min=0.07, sigma_max=11.0)
    with torch.inference_mode():
        sample(tiny(), grid, cond={"label": 1})
    assert bool(sample(tiny(), grid, cond={"label": 1}, guidance=Slope()).x.isfinite().all())


def test_bad_input():
    with pytest.raises(ShapeError, match="data shape"):
        sample(Denoiser(Tiny(), PATH, "v"), GRID)
    with pytest.raises(ShapeError, match="starting points"):
        draw(x=torch.zeros(3, 6))
    with pytest.raises(ShapeError, match="points"):
        draw(x=torch.zeros(10, 5))
    with pytest.raises(DTypeError):
        draw(x=torch.zeros(10, 6, dtype=torch.long))
    with pytest.raises(DTypeError):
        draw(dtype=torch.int32)
    with pytest.raises(ConditionError):
        draw(labels=LABELS[:4])
    with pytest.raises(ConditionError):
        draw(labels=LABELS + 2)
    with pytest.raises(UnknownNameError):
        draw(guidance=CFG(2.0, away="negativ"), conds={"negative": {"label": 0}})
    den = Denoiser(Tiny(), PATH, "v", schema=Schema({"label": Field(values=4)}), shape=(6,))
    with pytest.raises(ConditionError, match="label dropping"):
        sample(den, GRID, cond={"label": 1}, guidance=CFG(2.0))
    with pytest.raises(RangeError):
        draw(samples=0)
    with pytest.raises(DTypeError, match=r"Pass dtype=torch\.float64"):
        sample(Denoiser(Tiny().double(), PATH, "v", schema=SCHEMA, shape=(6,)), GRID)
    with pytest.raises(DeviceError, match="Pass device='meta'"):
        sample(Denoiser(Tiny().to("meta"), PATH, "v", schema=SCHEMA, shape=(6,)), GRID)
    with pytest.raises(DTypeError, match="like the network"):
        sample(tiny(), GRID, nets={"weak": Denoiser(Tiny().half(), PATH, "v", schema=SCHEMA)})
    with pytest.raises(UnsupportedError, match="checkpoint"):
        draw(solver=Adaptive(), checkpoint=Checkpoint("x"))
    with pytest.raises(RangeError):
        Checkpoint("x", every=0)


WORKER = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo")
from test_sampling import LABELS, draw
from wayfield.solve import Ancestral
rank, world = dist.get_rank(), dist.get_world_size()
mine = list(range(10))[rank::world]
x = draw(mine, LABELS[mine], solver=Ancestral()).x
out = [torch.empty(len(range(10)[r::world]), 6) for r in range(world)]
dist.all_gather(out, x)
if rank == 0:
    whole = torch.empty(10, 6)
    for r, part in enumerate(out):
        whole[r::world] = part
    from wayfield import files
    files.write(sys.argv[2], {"x": whole}, {})
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_one_process_samples(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    out = tmp_path / "x.safetensors"
    here = os.path.dirname(__file__)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        here,
        str(out),
    ]
    subprocess.run(launch, check=True, capture_output=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    got = files.read(out)[0]["x"]
    torch.testing.assert_close(got, draw(solver=Ancestral()).x, rtol=1e-5, atol=1e-5)


def test_many_guidances_are_compiled_in_one_process(mixture):
    """Each is a graph of its own; the compiler's usual limit is eight."""
    torch._dynamo.reset()
    options = {"samples": 2, "cond": {"label": 1}, "dtype": torch.float64, "solver": DDIM()}
    grid = G.uniform(VP(), 2, start=0.98, end=0.02)
    for k in range(10):
        guidance = CFG(2.0 + k) + 0.1 * k * Away(COND, of="null")
        got = sample(mixture(VP(), d=k + 1), grid, guidance=guidance, compile="eager", **options).x
        torch.testing.assert_close(got, sample(mixture(VP(), d=k + 1), grid, guidance=guidance, **options).x)
