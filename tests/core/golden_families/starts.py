"""How golden cases name their starting states."""

import re


def start(case, y=None):
    """`x_init/A`, `x_init/A*sigmas[0]`, `x_init/A*sigma_max`, `x_init/B*t_start`, or `y + FACTOR*x_init/A`."""
    text = case["x_init"]
    if text is None:
        return case.array("x_start")
    if text == "y":
        return y
    key = re.search(r"x_init/\w+", text).group()
    rest = text.replace("y + ", "").replace(key, "").strip("*")
    return case.array(key) * factor(case, rest) + (y if "y + " in text else 0.0)


def factor(case, name):
    """A number, `sigmas[0]`, or the name of a field of the case or of its solver or sampling arguments."""
    if not name:
        return 1.0
    if name == "sigmas[0]":
        given = case.get("sigmas") or case["sample_kwargs"]["sigmas"]
        return case.array(given)[0].item() if isinstance(given, str) else given[0]
    for fields in (case.fields, case.get("sample_kwargs", {}), case.get("solver") or {}, case.get("params") or {}):
        if name in fields:
            return float(fields[name])
    return float(name)


FAMILIES = {}
