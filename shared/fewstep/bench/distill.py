"""`fewstep bench distill`: every distillation method on every world, three seeds; one row each.

A method is its recipe. It is trained after the recipes whose artifacts it reads (its teachers), with one seed for all of them, in
DIR/<world>/<seed>/<recipe>. Finished rows lie there as row.json and are not made again, so that an interrupted bench goes on, and
several processes share the work (`--part 0/2`, `--part 1/2`); nor are those that the table `--out` has from an earlier run.

Figures at 1, 2, 4 steps and the method's own number of them: the world's distance to fresh real samples (of a mixture under guidance:
to samples of the guided teacher from other noise), and to_teacher, the root mean square distance to the teacher's sample from the same
noise; beside them the teacher's own figures at that guidance. Rows of the teachers themselves say what undistilled models do.
"""

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from torch import Tensor

from fewstep import recipes
from fewstep.bench import trainings
from fewstep.bench.distill_worlds import WORLDS, World
from fewstep.bench.timing import machine, write
from fewstep.generator import Generator, pretrained
from fewstep.pairs import make_pairs
from fewstep.pairs.folder import read_manifest

STEPS = (1, 2, 4)


def plan(world: World) -> dict[str, list[str]]:
    """Recipe -> the recipes that it needs trained before it, teachers first."""
    files = {
        n: recipes.folder() / f"{n}.yaml" for n in recipes.available() if n.startswith(f"{world.folder}/{world.prefix}")
    }
    texts = {Path(n).name: f.read_text() for n, f in files.items()}
    needed = {n: re.findall(r"runs/(\w+)/last", text) for n, text in texts.items()}
    # Alignment aims at another law than the data's (bench/preference.py), unless it is a stage of a distillation.
    stages = {n for names in needed.values() for n in names}
    kept = {n: v for n, v in needed.items() if n in stages or "fewstep.preference." not in texts[n]}
    return {n: v for n, v in kept.items() if not world.foreign & set(v)}


def entries(needed: Mapping[str, list[str]]) -> list[str]:
    """The teachers at the ends of the chains, and all that is distilled from them."""
    return [*sorted({root(n, needed) for n in needed if needed[n]}), *(n for n in needed if needed[n])]


def root(name: str, needed: Mapping[str, list[str]]) -> str:
    """The teacher at the end of the chain."""
    return root(needed[name][0], needed) if needed.get(name) else name


def trained(name: str, world: World, seed: int, folder: Path) -> dict[str, Any]:
    """Train a recipe, and before it what it needs; returns what the training took. Folders that are there are taken as they are."""
    place = folder / world.name / str(seed) / name
    done = place / "training.json"
    if done.is_file():
        return json.loads(done.read_text())
    from fewstep.train.fit import instantiate

    for teacher in plan(world)[name]:
        trained(teacher, world, seed, folder)
    recipe = world.moved(yaml.safe_load((recipes.folder() / world.folder / f"{name}.yaml").read_text()))
    text = yaml.safe_dump(recipe).replace("runs/", f"{place.parent}/")
    place.mkdir(parents=True, exist_ok=True)
    (place / "recipe.yaml").write_text(text)
    pairs = stored_pairs(yaml.safe_load(text))
    if pairs is not None and world.pairs is not None:
        make_pairs(pretrained(str(place.parent / root(name, plan(world)) / "last")), pairs, world.pairs)
    run = instantiate(place / "recipe.yaml", trainings.seeded(seed))
    start = time.process_time()
    run.trainer.fit(run.model, run.datamodule)
    spent = {"iterations": run.model.iterations, "cpu_seconds": round(time.process_time() - start, 1)}
    spent["ms_per_iteration"] = round(1000 * spent["cpu_seconds"] / spent["iterations"], 2)
    done.write_text(json.dumps(spent))
    return spent


@torch.no_grad()
def generated(model: Generator, batch: Mapping[str, Tensor], noise: Tensor, steps: int, cfg: float = 1.0) -> Tensor:
    """Samples from this noise with the conditions of a batch."""
    _, cond, y = model.prepare(batch)
    torch.manual_seed(0)  # stochastic samplers draw more
    if cfg == 1.0:
        return model.generate(noise, cond, y, steps=steps)
    from fewstep.sampling import sample

    path = model.denoiser.path
    grid = model.grid(path, steps)
    return sample(model.bind(cond, y, cfg), model.begin(noise, y, float(grid[0])), path, model.solver, grid, y)


def stored_pairs(recipe: Mapping[str, Any]) -> str | None:
    """The folder of pairs that a recipe reads."""
    data = recipe["data"]
    return data["init_args"]["folder"] if data["class_path"] == "fewstep.pairs.StoredPairs" else None


def guidance_of(recipe: Mapping[str, Any]) -> float:
    """The teacher's guidance in a recipe, or in the stored pairs it reads; the middle where a range is drawn from."""
    pairs = stored_pairs(recipe)
    if pairs is not None:
        return read_manifest(Path(pairs))["job"]["cfg"]
    args = recipe["model"]["init_args"].get("guidance", {}).get("init_args", {})
    return (args.get("low", 1.0) + args.get("high", 1.0)) / 2


def measured(name: str, world: World, seed: int, folder: Path) -> dict[str, Any]:
    """The row of one method, trained where it is not yet."""
    place = folder / world.name / str(seed) / name
    row = place / "row.json"
    if row.is_file():
        return json.loads(row.read_text())
    spent = trained(name, world, seed, folder)
    student, teacher = (pretrained(str(place.parent / n / "last")) for n in (name, root(name, plan(world))))
    cfg = guidance_of(yaml.safe_load((place / "recipe.yaml").read_text()))
    g = torch.Generator().manual_seed(1000 + seed)
    real, batch = world.data(g), world.data(g)
    noise = torch.randn(batch["x0"].shape, generator=g)
    target = generated(teacher, batch, noise, world.teacher_steps or teacher.steps, cfg)
    # Against what the teacher aims at: the data, or under guidance its own samples from other noise.
    aim = real["x0"]
    if cfg != 1.0 and not world.guidance_aims_at_data:
        aim = generated(teacher, real, torch.randn(aim.shape, generator=g), teacher.steps, cfg)
    result = {
        "world": world.name,
        "method": name.removeprefix(world.prefix),
        "seed": seed,
        **spent,
        "own_steps": student.steps,
        "guidance": cfg,
        "parameters": sum(p.numel() for p in student.parameters()),
        "teacher": world.scores(target, batch["label"], aim),
        "at": {str(n): figures for n, figures in at_steps(student, batch, noise, target, aim, world)},
        "samples": len(aim),
    }
    row.write_text(json.dumps(result, indent=2))
    return result


def at_steps(
    model: Generator, batch: Mapping[str, Tensor], noise: Tensor, target: Tensor, aim: Tensor, world: World
) -> Iterator[tuple[int, dict[str, float]]]:
    """(steps, figures) at every number of steps that the generator's grid allows."""
    for n in sorted({*STEPS, model.steps}):
        try:
            x = generated(model, batch, noise, n)
        except ValueError:  # a fixed number of steps
            continue
        yield n, {**world.scores(x, batch["label"], aim), "to_teacher": (x - target).square().mean().sqrt().item()}


def floors(world: World, seeds: Sequence[int]) -> dict[str, float]:
    """Real samples against real samples, medians over the seeds."""
    found = []
    for seed in seeds:
        g = torch.Generator().manual_seed(2000 + seed)
        one, other = world.data(g), world.data(g)
        if torch.equal(one["x0"], other["x0"]):  # a finite set: its halves
            one, other = (
                {k: v[part] for k, v in one.items()} for part in torch.randperm(len(one["x0"]), generator=g).chunk(2)
            )
        found.append(world.scores(one["x0"], one["label"], other["x0"]))
    return {k: median(f[k] for f in found) for k in found[0]}


def medians(rows: Sequence[Mapping[str, Any]], world: World) -> dict[str, dict[str, float]]:
    """Method -> steps -> the world's distance, medians over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in (r for r in rows if r["world"] == world.name):
        for n, figures in row["at"].items():
            found.setdefault(row["method"], {}).setdefault(n, []).append(figures[world.distance])
    return {m: {n: median(v) for n, v in at.items()} for m, at in found.items()}


def pages(rows: Sequence[Mapping[str, Any]], floor: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table per world: medians over the seeds, best first, and of modes the fewest."""
    lines = []
    for world in (WORLDS[name]() for name in floor):
        kept = [r for r in rows if r["world"] == world.name]
        others = [k for k in floor[world.name] if k != world.distance]
        real = ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in floor[world.name].items())
        lines += [
            f"## {world.name}",
            "",
            f"Distance: {world.distance.replace('_', ' ')}. Real against real: {real}.",
            "",
        ]
        head = ["method", "guidance", "1 step", "2", "4", "own steps", "at these"]
        head += [*others, *["to the teacher", "teacher", "CPU s", "seeds"]]
        lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        table = medians(kept, world)
        for method in sorted(table, key=lambda m: table[m].get("1", max(table[m].values()))):
            runs = [r for r in kept if r["method"] == method]
            lines.append(f"| {method} | {' | '.join(_cells(runs, table[method], others, world.distance))} |")
        lines.append("")
    return "\n".join(lines)


def _cells(
    runs: Sequence[Mapping[str, Any]], at: Mapping[str, float], others: Sequence[str], distance: str
) -> list[str]:
    """The cells of a method after its name; at: steps -> the median distance."""
    steps = str(runs[0]["own_steps"])
    own = [r["at"][steps] for r in runs]
    return [
        f"{runs[0]['guidance']:g}",
        *(f"{at[n]:.3f}" if n in at else "" for n in map(str, STEPS)),
        steps,
        f"{at[steps]:.3f}",
        *(f"{(min if k == 'modes' else median)(o[k] for o in own):.3g}" for k in others),
        f"{median(o['to_teacher'] for o in own):.3f}",
        f"{median(r['teacher'][distance] for r in runs):.3f}",
        f"{median(r['cpu_seconds'] for r in runs):.0f}",
        str(len(runs)),
    ]


def draw(rows: Sequence[Mapping[str, Any]], floor: Mapping[str, Mapping[str, float]], file: Path) -> None:
    """The distance of every method at 1, 2 and 4 steps, one panel per world; the line is real against real."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    worlds = [WORLDS[name]() for name in floor]
    figure, axes = plt.subplots(1, len(worlds), figsize=(6.5 * len(worlds), 11), squeeze=False)
    for axis, world in zip(axes.flat, worlds, strict=True):
        table = medians(rows, world)
        names = sorted(table, key=lambda m: -table[m].get("1", max(table[m].values())))
        for n, marker in zip(map(str, STEPS), "o^s", strict=True):
            have = [(table[m][n], i) for i, m in enumerate(names) if n in table[m]]
            axis.semilogx(*zip(*have, strict=True), marker, label=f"{n} step{'s' * (n != '1')}")
        axis.axvline(floor[world.name][world.distance], color="grey", label="real against real")
        axis.set(title=world.name, xlabel=world.distance.replace("_", " "), yticks=range(len(names)))
        axis.set_yticklabels(names, fontsize=8)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)


def main(threads: int = 1, out: str | None = None, argv: Sequence[str] = ()) -> int:
    """Make what is missing of the rows asked for, and write all of them; beside FILE.json tables FILE.md and a picture FILE.png."""
    parser = trainings.parser("distill", __doc__, out)
    parser.add_argument("--world", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="such as kd; all where not given")
    parser.add_argument(
        "--part", default="0/1", metavar="I/N", help="make only every N-th of the methods, from the I-th on"
    )
    parser.add_argument("--finished", action="store_true", help="write what is there, train nothing")
    args = parser.parse_args(argv)
    torch.set_num_threads(threads)
    part, parts = (int(v) for v in args.part.split("/"))
    before = json.loads(Path(args.out).read_text()) if args.out and Path(args.out).is_file() else {}
    rows = {(r["world"], r["method"], r["seed"]): r for r in before.get("rows", [])}
    for seed in args.seeds:
        for world in (WORLDS[name]() for name in args.world):
            chosen = [
                m for m in entries(plan(world)) if args.methods is None or m.removeprefix(world.prefix) in args.methods
            ]
            for name in chosen[part::parts]:
                key = (world.name, name.removeprefix(world.prefix), seed)
                finished = (args.folder / world.name / str(seed) / name / "row.json").is_file()
                if key in rows or (args.finished and not finished):
                    continue
                rows[key] = row = measured(name, world, seed, args.folder)
                own = row["at"][str(row["own_steps"])]
                sys.stderr.write(f"{world.name} {row['method']} seed {seed}: {own} in {row['cpu_seconds']} s\n")
    floor = before.get("floors", {})
    floor |= {w: floors(WORLDS[w](), args.seeds) for w in args.world if w not in floor}
    table = [rows[key] for key in sorted(rows)]
    write({"bench": "distill", **machine(), "floors": floor, "rows": table}, args.out)
    if args.out is not None:
        Path(args.out).with_suffix(".md").write_text(pages(table, floor))
        draw(table, floor, Path(args.out).with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(argv=sys.argv[1:]))
