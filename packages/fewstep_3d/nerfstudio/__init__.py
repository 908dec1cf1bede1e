"""The nerfstudio plugin: `ns-train fewstep-triplane`, `ns-train fewstep-distill`, and the data parser `fewstep-data` (extra `nerfstudio`).

Only modules of this folder import nerfstudio, and only nerfstudio (through its entry points) and benches import them; `run_folder` alone
is used without it. Methods, data parser and models are in separate modules: nerfstudio loads data parsers while it imports its data managers.
"""
