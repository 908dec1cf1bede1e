"""`fewstep mesh eval IN REFERENCE`: how near a mesh is to another. IoU only where both are watertight."""

import argparse
import json

from fewstep.command import UsageError
from fewstep_3d.export import source_mesh
from fewstep_3d.mesh_files import normalised, read_mesh
from fewstep_3d.metrics import distances, iou, occupied, surface_samples


def main(args: argparse.Namespace) -> int:
    """The verb."""
    if args.samples < 1 or not 4 <= args.side <= 512:
        raise UsageError(f"--samples is at least 1 and --side 4 to 512, not {args.samples} and {args.side}")
    mesh, reference = source_mesh(args.input, args.resolution, args.y_up), read_mesh(args.reference, args.y_up)
    for m in (mesh, reference):
        m.merge_vertices(merge_tex=True, merge_norm=True)
    scale = 1.0
    if args.align:
        mesh, reference = normalised(mesh), normalised(reference)
    else:  # the cube that the grid of the IoU covers
        low, high = reference.bounds
        scale = 1.5 / float((high - low).max())
        for m in (mesh, reference):
            m.apply_translation(-(low + high) / 2)
            m.apply_scale(scale)
    a, b = surface_samples(mesh, args.samples), surface_samples(reference, args.samples)
    found = distances(a, b)
    both = mesh.is_watertight and reference.is_watertight
    figures = {
        "input": args.input,
        "reference": args.reference,
        "iou": iou(occupied(mesh, args.side), occupied(reference, args.side)).item() if both else None,
        "chamfer_l1": found.chamfer_l1,
        "chamfer_l2": found.chamfer_l2,
        "floor": distances(surface_samples(reference, args.samples, 1), b).chamfer_l1,
        **{f"f{d:g}": v for d, v in found.f_score.items()},
        "watertight": bool(mesh.is_watertight),
    }
    if args.json:
        print(json.dumps(figures, indent=2))
        return 0
    volume = "no IoU: open" if figures["iou"] is None else f"IoU {figures['iou']:.3f}"
    print(
        f"{volume}; Chamfer-L1 {found.chamfer_l1:.4f} (floor {figures['floor']:.4f}); "
        f"F@0.02 {found.f_score[0.02]:.3f}; {'watertight' if mesh.is_watertight else 'open'}"
    )
    return 0
