"""`fewstep mesh eval IN REFERENCE`: how near a mesh is to another. IoU only where both are watertight."""

import argparse
import json
from typing import Any

from trimesh import Trimesh

from fewstep.command import UsageError
from fewstep_3d.export import source_mesh
from fewstep_3d.mesh_files import normalised, read_mesh
from fewstep_3d.metrics import distances, iou, occupied, surface_samples


def main(args: argparse.Namespace) -> int:
    """The verb."""
    if args.samples < 1 or not 4 <= args.side <= 512:
        raise UsageError(f"--samples is at least 1 and --side 4 to 512, not {args.samples} and {args.side}")
    mesh, reference = source_mesh(args.input, args.resolution, args.y_up), read_mesh(args.reference, args.y_up)
    figures = {
        "input": args.input,
        "reference": args.reference,
        **against(mesh, reference, args.align, args.samples, args.side),
    }
    if args.json:
        print(json.dumps(figures, indent=2))
        return 0
    volume = "no IoU: open" if figures["iou"] is None else f"IoU {figures['iou']:.3f}"
    print(
        f"{volume}; Chamfer-L1 {figures['chamfer_l1']:.4f} (floor {figures['floor']:.4f}); "
        f"F@0.02 {figures['f0.02']:.3f}; {'watertight' if figures['watertight'] else 'open'}"
    )
    return 0


def against(mesh: Trimesh, reference: Trimesh, align: bool, samples: int, side: int) -> dict[str, Any]:
    """The figures. align: each is brought into the cube by itself; otherwise both by the reference's bounds."""
    mesh, reference = mesh.copy(), reference.copy()
    for m in (mesh, reference):
        m.merge_vertices(merge_tex=True, merge_norm=True)
    if align:
        mesh, reference = normalised(mesh), normalised(reference)
    else:  # the cube that the grid of the IoU covers
        low, high = reference.bounds
        for m in (mesh, reference):
            m.apply_translation(-(low + high) / 2)
            m.apply_scale(1.5 / float((high - low).max()))
    a, b = surface_samples(mesh, samples), surface_samples(reference, samples)
    found = distances(a, b)
    both = mesh.is_watertight and reference.is_watertight
    return {
        "iou": iou(occupied(mesh, side), occupied(reference, side)).item() if both else None,
        "chamfer_l1": found.chamfer_l1,
        "chamfer_l2": found.chamfer_l2,
        "floor": distances(surface_samples(reference, samples, 1), b).chamfer_l1,
        **{f"f{d:g}": v for d, v in found.f_score.items()},
        "watertight": bool(mesh.is_watertight),
    }
