"""A policy's simulation held against real runs: `bench_dev_adaptive.py DIR POLICY...`.

DIR holds a finished ablation that is not stratified (the policy would weigh sources). For each
policy and start (below `DIR/adaptive`) a proxy is trained in windows, its shares by its own
ledger, under the weights of the design and under a seed that no run of the ablation had; its
shares are compared with those that `crystalmix ablate simulate` gave before, and its loss at the
end with that which the ablation's law gives for what it read in all.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from crystalmix.mixtures.ablations.design import Mixture
from crystalmix.mixtures.ablations.pool_of_build import view
from crystalmix.mixtures.ablations.small_manifest import remix
from crystalmix.mixtures.ablations.spec import HELD_OUT
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.tables import table
from crystalmix.train.ablations import proxies
from crystalmix.train.ablations.measure import held_of, measure
from crystalmix.train.ablations.results import Insight
from crystalmix.train.ablations.tables import SPEC
from crystalmix.train.adaptive import windows
from crystalmix.train.adaptive.policy import Policy, Window, read_policy
from crystalmix.train.api.ablations import Ablation
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.trainer.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("policies", type=Path, nargs="+")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    seen, rows = Insight(folder), []
    new = seen.spec.swarm.replicates + seen.spec.checks.seeds + 1
    for path in asked.policies:
        for start in ("current", "uniform"):
            simulated = Ablation(folder).simulate(path, start=start).simulation
            for draw in (0, new):
                out = folder / "adaptive" / f"{path.stem}-{start}-{draw}"
                shares, read, loss = real(seen, read_policy(path), seen.mixture(start), draw, out)
                off = np.abs(shares - simulated.shares)[1:]
                inside = (simulated.low <= shares) & (shares <= simulated.high)
                moved = np.abs(shares - shares[0])[1:].mean()
                value = np.array(list(seen.spec.value.values()))
                expected = float(seen.fit.mean(read[None])[0] @ value)
                numbers = [moved, off.mean(), off.max(), inside[1:].mean()]
                losses = [f"{loss:.4f}", f"{expected:.4f}"]
                rows.append([path.stem, start, draw, *(f"{x:.3f}" for x in numbers), *losses])
    head = ["policy", "start", "draw", "moved", "off, mean", "off, most", "inside 90 %"]
    sys.stdout.write("\n".join([*table(rows, [*head, "valued loss", "by the law"]), ""]))


def real(
    seen: Insight, policy: Policy, start: dict[str, float], draw: int, out: Path
) -> tuple[np.ndarray, np.ndarray, float]:
    """Train one proxy in windows; return its shares by window, those in all, its valued loss."""
    trial = seen.ground.single(Mixture("adaptive", start), draw)
    whole = remix(seen.ground.pool, trial.portions[0])
    spec, pool = seen.spec, seen.folder / "build"
    held = tuple(held_of(seen.ground, name) for name in spec.domains)
    proxy = proxies.ProxyRun(
        "adaptive", str(pool), str(out), (whole.phase,), trial.size, trial.seed,
        spec.proxy.learning_rate, spec.proxy.warmup, HELD_OUT, held, spec.proxy.spike,
        read_json(seen.folder / SPEC).get("dtype", "bfloat16"),
    )  # fmt: skip
    [run] = proxies._runs(proxy, [whole])
    stem, done, recorded, checkpoint = windows.stem_of(whole), [], list[Window](), None
    for _ in range(stem.windows(policy)):
        manifest = windows.compose(stem, policy, done, recorded)
        view(pool, [*done, manifest], out / "build")
        trainer = Trainer(run, manifest, out / "build", out / manifest.phase)
        trainer.train(checkpoint, manifest.steps)
        place = PhaseFolder(out / manifest.phase)
        checkpoint = place.checkpoint(manifest.steps)
        recorded.append(windows.recorded(manifest, place.ledger))
        done.append(manifest)
    losses = [measure(trainer.model, pool, HELD_OUT, one, 1).nll for one in held]
    shares = np.array([[one.shares[name] for name in spec.domains] for one in recorded]) / 10**6
    read = np.array([sum(one.tokens[name] for one in recorded) for name in spec.domains])
    return shares, read / read.sum(), float(np.array(losses) @ list(spec.value.values()))


if __name__ == "__main__":
    main()
